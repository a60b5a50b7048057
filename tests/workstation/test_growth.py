"""How cost grows: the networks that are made for it, the ways with several faces, and what the docs say of the result.

Two networks on ONNX Runtime, which is quick to convert for; what times come out is not looked at.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pipnet_edge import bundle as bundles
from pipnet_edge.benchmarks.studies import growth, growth_faces, growth_page, variations
from pipnet_edge.benchmarks.studies.growth import FACED, Network
from pipnet_edge.benchmarks.studies.growth_page import LANDMARKS, SIDE, Growth
from pipnet_edge.converters import demo
from pipnet_edge.converters.checkpoint import nets, read
from pipnet_edge.converters.checkpoint import network as networks
from pipnet_edge.decode import Decoder
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import Rect, cut, read_picture
from pipnet_edge.spec import ModelSpec, mean_faces

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "studies" / "results" / "growth.json"
MIDDLE = Network("mobilenet_v2", "sparse", LANDMARKS, SIDE, ("fp32",), "onnx")
SMALL = Network("mobilenet_v2", "dense", 19, SIDE, ("fp32",), "onnx")


def quiet(*_: object) -> None:
    """Told how far it is, says nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def found(folder: Path) -> Growth:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "ROUND", growth.Settings(warmup=1, seconds=0, count=2))
        patch.setattr(growth, "FACES", (1, 3))
        patch.setattr(growth, "MAKERS", 1)
        return growth.grow([MIDDLE, SMALL], [MIDDLE], folder, 1, quiet)


# --- The networks.


def test_other_landmarks_take_over_the_heads_of_those_nearest() -> None:
    for data, face in mean_faces().items():
        state = variations.state("mobilenet_v2", data)
        backbone, stride, net = nets.build(state)
        assert (backbone, stride) == ("mobilenet_v2", 32)
        assert net.heads["score"].out_channels == len(face.points)
        assert net.heads["neighbor_x"].out_channels == 10 * len(face.points)
    embedded = read.load(demo.CHECKPOINT, read.Options(data="300w")).net.state_dict()
    _, _, same = nets.build(variations.state("mobilenet_v2", "300w"))
    assert all(torch.equal(value, embedded[key]) for key, value in same.state_dict().items())


def test_other_landmarks_are_found_where_those_nearest_are() -> None:
    """So that their cells are spread over a face as those of a trained network are."""
    crops = np.stack([crop_of(path) for path in sorted(demo.FACES.glob("*.jpg"))[:4]])
    cells = {}
    for data in ("300w", "wflw"):
        face = mean_faces()[data]
        spec = ModelSpec("mobilenet_v2", len(face.points), 10, 32, 256, face)
        _, _, net = nets.build(variations.state("mobilenet_v2", data))
        cells[data] = Decoder(spec)(networks.maps_of(networks.Network(spec, net, 0), crops)).cell
    own, wanted = (np.array(mean_faces()[data].points) for data in ("300w", "wflw"))
    nearest = [int(np.linalg.norm(own - point, axis=1).argmin()) for point in wanted]
    np.testing.assert_array_equal(cells["wflw"], cells["300w"][:, nearest])
    assert min(len(set(each)) for each in cells["wflw"].tolist()) > 12


def crop_of(path: Path) -> np.ndarray:
    picture = read_picture(path)
    return cut(picture, Rect.whole(picture), 256)


def test_random_weights_give_activations_of_usual_size() -> None:
    state = variations.state("resnet18", "cofw")
    backbone, stride, net = nets.build(state)
    assert (backbone, stride) == ("resnet18", 32)
    spec = ModelSpec(backbone, 29, 10, stride, 256, mean_faces()["cofw"])
    crop = crop_of(min(demo.FACES.glob("*.jpg")))
    with torch.no_grad():
        score, offset, *_ = net(networks.normalise(crop[None], spec))
    assert 0.2 < float(score.std()) < 5
    assert 0.2 < float(offset.std()) < 5


@pytest.mark.parametrize(("backbone", "data"), [("resnet34", "wflw"), ("resnet18", "helen")])
def test_unknown_names_are_refused(backbone: str, data: str) -> None:
    with pytest.raises(EdgeError, match=r"allowed: .*"):
        variations.state(backbone, data)


def test_curves_reach_as_far_as_they_have_to() -> None:
    for heads in growth.HEADS:
        for backbone, precision in (("mobilenet_v2", "int8"), ("mobilenet_v2", "fp32"), ("resnet18", "int8")):
            own = [
                n for n in growth.networks() if (n.backbone, n.heads, n.precisions) == (backbone, heads, (precision,))
            ]
            assert {19, 68, 106} <= {n.landmarks for n in own if n.side == SIDE}
            assert {128, 256, 384} <= {n.side for n in own if n.landmarks == LANDMARKS}
    assert {growth.DATA[n]: n for n in growth.DATA} == {
        data: len(mean_faces()[data].points) for data in growth.DATA.values()
    }
    names = [network.name for network in (*growth.networks(), FACED[1])]
    assert len(set(names)) == len(names)
    assert growth.BATCHED == variations.BATCHED


def test_what_is_there_is_not_made_again(found: Growth, folder: Path) -> None:
    before = (folder / MIDDLE.name / "manifest.json").stat()
    said: list[str] = []
    growth.make([MIDDLE, SMALL], folder, lambda what, *_: said.append(what))
    assert said == []
    assert (folder / MIDDLE.name / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_network_that_cannot_be_made_is_named(folder: Path) -> None:
    odd = Network("mobilenet_v2", "dense", 19, 100, ("fp32",), "onnx")
    with pytest.raises(EdgeError, match=r"^could not make mobilenet_v2-19-100-dense-onnx-fp32; "):
        growth.make([odd], folder, quiet)


# --- What is measured.


def test_every_point_is_timed_in_every_round(found: Growth) -> None:
    points = {(run.landmarks, run.side, run.heads, run.threads) for run in found.runs}
    threads = growth.bench.Plan().thread_counts(int(found.machine["cores"]))
    assert points == {(68, 256, "sparse", count) for count in threads} | {(19, 256, "dense", 1)}
    for run in found.runs:
        assert set(run.stages) == {"preprocess", "inference", "decode", "frame"}
        assert all(len(rounds) == 1 and min(rounds) > 0 for rounds in run.stages.values())
        assert run.median() > run.median("inference") > 0
        assert str(run.runtime).startswith("onnxruntime ")
    ways = {(row.way, row.faces, row.threads) for row in found.faces}
    several = growth.bench.Plan().thread_counts(int(found.machine["cores"]))[-1]
    expected = {(way, faces, count) for way in ("loop", "batch") for faces in (1, 3) for count in (1, several)}
    assert ways == expected | ({("sessions", faces, several) for faces in (1, 3)} if several > 1 else set())
    assert all(len(row.ms) == 3 and min(row.ms) > 0 for row in found.faces)


def test_all_ways_find_the_same_landmarks(found: Growth, folder: Path) -> None:
    bundle = bundles.read(folder / MIDDLE.name)
    crops, _ = bundle.read_golden()
    picture, rects = growth_faces.picture_of(crops, 3)
    session, decode = bundle.open_session("onnx-fp32", 1), bundle.decoder("onnx-fp32")
    expected = np.stack([decode(session.run(cut(picture, rect, SIDE))).points for rect in rects])
    assert np.ptp(expected, axis=0).max() > 0.01  # three faces, not one thrice
    batched = bundle.folder / "onnx-fp32" / variations.BATCHED
    names = []
    for name, way in growth_faces.ways(bundle, "onnx-fp32", 2, batched):
        names.append(name)
        np.testing.assert_allclose(way(picture, rects), expected, atol=1e-5)
    assert names == ["loop", "batch", "sessions"]


def test_rectangles_hold_the_faces(found: Growth, folder: Path) -> None:
    crops, _ = bundles.read(folder / MIDDLE.name).read_golden()
    picture, rects = growth_faces.picture_of(crops, 3)
    for crop, rect in zip(crops, rects, strict=False):
        assert np.abs(cut(picture, rect, SIDE).astype(int) - crop).mean() < 3


# --- What is shown.


def test_a_result_is_read_as_it_was_written(found: Growth, tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    growth_page.write(found, path)
    assert not re.search(r"^\s*[\d.]+,?$", path.read_text(), re.MULTILINE)  # no number has a line of its own
    assert growth_page.read(path) == found
    path.write_text(json.dumps({"runs": []}))
    with pytest.raises(EdgeError, match=r"growth\.json"):
        growth_page.read(path)


def test_tables_and_drawing_have_every_point(found: Growth) -> None:
    text = growth_page.markdown(found)
    for run in found.runs:
        assert f"{run.median():.2f}" in text
    for row in found.faces:
        assert f"| {row.series} |" in text
    drawn = ElementTree.fromstring(growth_page.drawing(found))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    tips = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    middle = next(run for run in found.runs if run.landmarks == 68 and run.threads == 1)
    assert tips.count(f"{middle.series}: {middle.median():.2f} ms") >= 3  # in the panels of landmarks, size and threads


def test_the_committed_result_is_what_is_shown() -> None:
    committed = growth_page.read(RESULT)
    docs = (ROOT / "docs" / "performance.md").read_text()
    assert RESULT.with_suffix(".md").read_text() == growth_page.markdown(committed)
    assert RESULT.with_suffix(".svg").read_text() == growth_page.drawing(committed)
    assert "(../benchmarks/studies/results/growth.md)" in docs
    assert "(../benchmarks/studies/results/growth.svg)" in docs
