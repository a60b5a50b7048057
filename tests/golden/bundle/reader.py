"""A reader of bundles that was written from docs/bundle-format.md alone, with the standard library and numpy's arrays.

It shows that the page is enough: tests/device/test_bundle_format.py runs it on every vector. Each function raises
ValueError, KeyError or OSError for what a reader has to refuse.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOC = (Path(__file__).resolve().parents[3] / "docs" / "bundle-format.md").read_text()
Arrays = dict[str, NDArray[Any]]


def tables() -> dict[str, dict[str, str]]:
    """The page's own tables of fields: name of the object to field to type."""
    found = {}
    for section in re.split(r"^##+ ", DOC, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", section, flags=re.MULTILINE)
        found[section.splitlines()[0]] = {f: kind for names, kind in rows for f in re.findall(r"`(\w+)`", names)}
    return found


TABLES = tables()
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\xa0\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int and abs(value) < 1 << 63,
    "bool": lambda value: type(value) is bool,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
    "text": lambda value: type(value) is str and not UNPRINTABLE.search(value),
}
NEAR = ("neighbor_x", "neighbor_y")
PART, TOP = re.compile("[A-Za-z0-9._-]{1,100}"), "The top object"
FILES = {
    "onnx": {"model.onnx"},
    "tflite": {"model.tflite"},
    "ncnn": {"model.param", "model.bin"},
    "mnn": {"model.mnn"},
    "null": {"golden.npz"},
}


def need(fact: object, what: str) -> None:
    if not fact:
        raise ValueError(what)


def fits(kind: str, value: Any, instead: dict[str, str]) -> bool:
    """Whether a value is of a type as the page writes it. instead: names of other tables to take."""
    if kind.endswith(" or null"):
        return value is None or fits(kind.removesuffix(" or null"), value, instead)
    if kind[0] == "[":
        parts = [kind[1:-1]] if kind[1] == "[" else kind[1:-1].split(", ")
        kinds = parts * len(value) if len(parts) == 1 and type(value) is list else parts
        fit = type(value) is list and len(kinds) == len(value)
        return fit and all(fits(k, v, instead) for k, v in zip(kinds, value, strict=True))
    if kind[0] == "{":
        inner = kind[1:-1]
        return type(value) is dict and all(PLAIN["text"](k) and fits(inner, v, instead) for k, v in value.items())
    if kind in PLAIN:
        return PLAIN[kind](value)
    table = TABLES[instead.get(kind, kind)]
    return (
        type(value) is dict and value.keys() == table.keys() and all(fits(table[k], value[k], instead) for k in table)
    )


def check_path(path: str) -> None:
    parts = path.split("/")
    plain = 1 <= len(parts) <= 4 and all(PART.fullmatch(part) and part != ".." for part in parts)
    need(plain and set(parts) != {"."}, path)


def manifest(folder: Path) -> Any:
    """A manifest of landmarks."""
    m = any_manifest(folder, "landmarks", {})
    spec, face = m["spec"], m["spec"]["mean_face"]
    stride, size, count = spec["net_stride"], spec["input_size"], len(face["points"])
    need(spec["num_lms"] == count >= 2 and 0 <= spec["num_nb"] < count, "landmarks and neighbours")
    need(stride in (16, 32, 64, 128) and stride <= size <= 4096 and size % stride == 0, "sizes")
    need(spec["presence"] is None or spec["presence"] > 0, "presence")
    need(1 <= spec["margin"] <= 4, "margin")
    need(spec["crop"] in ("test", "demo"), "crop")
    need(all(0 <= i < count for i in face["nme_pair"] or ()), "pair")
    return m


def detector(folder: Path) -> Any:
    """A manifest of a face detector."""
    m = any_manifest(folder, "detector", {"Spec": "DetectorSpec", "Parity": "FacesParity"})
    spec, edges = m["spec"], m["spec"]["margins"]
    strides = [level["stride"] for level in spec["levels"]]
    need(strides and strides == sorted(set(strides)) and set(strides) <= {8, 16, 32, 64, 128}, "strides")
    for level in spec["levels"]:
        need(1 <= len(level["priors"]) <= 8, "priors")
        need(all(1 <= p["size"] <= 4096 and 1 <= p["density"] <= 8 for p in level["priors"]), "prior")
    need(all(0 < variance <= 1 for variance in spec["variances"]), "variances")
    need(0 <= spec["threshold"] <= 1 and 0 < spec["overlap"] <= 1, "threshold and overlap")
    sizes = {(width, height) for width, height in spec["input_sizes"]}
    need(sizes and len(sizes) == len(spec["input_sizes"]), "input sizes")
    for size in sizes:
        count = sum(
            math.prod(shape[1:]) * shape[0] // 4 for name, shape in maps_of(spec, size).items() if "box" in name
        )
        need(strides[-1] <= min(size) <= max(size) <= 4096 and count <= 500000, "input size")
    need(all(abs(share) <= 2 for share in edges.values()), "margins")
    need(edges["left"] + edges["right"] > -1 and edges["top"] + edges["bottom"] > -1, "nothing is left of a box")
    return m


def any_manifest(folder: Path, kind: str, instead: dict[str, str]) -> Any:
    def constant(name: str) -> None:
        raise ValueError(name)

    m = json.loads((folder / "manifest.json").read_bytes().decode("utf-8"), parse_constant=constant)
    need(type(m) is dict and m.get("format") == "pipnet-edge-bundle" and m.get("version") == 4, "version")
    need(m.get("kind") == kind, "kind")
    need(fits(TOP, m, instead), "fields and types")
    mean, std = m["spec"]["mean"], m["spec"]["std"]
    need(all(0 <= value <= 1 for value in (*mean, *std)) and min(std) > 0, "mean and std")
    for layer in m["layers"]:
        numbers = [n for shape in (*layer["inputs"], layer["output"], layer["kernel"], layer["stride"]) for n in shape]
        need(all(1 <= n <= 1048576 for n in (*numbers, layer["groups"])), "layer")
        if layer["op"] in ("conv", "transposed"):
            need(len(layer["inputs"]) == 1 and layer["inputs"][0][0] % layer["groups"] == 0, "convolution")
    names = [v["name"] for v in m["variants"]]
    need(m["layers"] and names and len(set(names)) == len(names), "layers and variants")
    for v in m["variants"]:
        need(v["runtime"] in FILES and v["files"] and v["name"] == f"{v['runtime']}-{v['precision']}", "variant")
        need(v["precision"] in ("fp32", "fp16", "int8", "int8-full", "int16x8", "w8"), "precision")
    for file in (m["golden"], *(file for v in m["variants"] for file in v["files"])):
        check_path(file["path"])
        need(0 <= file["size"] <= 1 << 30, "size")
    for t in m["tuned"].values():
        cpus = t["cpus"]
        need(t["variant"] in names and 1 <= t["threads"] <= (len(cpus) or 4096) and t["ms"] > 0, "tuned")
        need(cpus == sorted(set(cpus)) and all(0 <= cpu <= 4095 for cpu in cpus), "CPUs")
    return m


def checked(folder: Path, file: dict[str, Any]) -> Path:
    path = folder / file["path"]
    need(path.is_file() and path.resolve().is_relative_to(folder.resolve()), "no such file, or outside")
    content = path.read_bytes()
    need((len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), "changed")
    return path


def arrays(path: Path, *names: str) -> Arrays:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in names:
            entry = archive.read(f"{name}.npy")
            need(entry[:8] == b"\x93NUMPY\x01\x00", "not an array")
            end = 10 + int.from_bytes(entry[8:10], "little")
            header = ast.literal_eval(entry[10:end].decode("ascii"))
            need(header["descr"] in ("|u1", "<f4", "<f2") and not header["fortran_order"], "type")
            flat = np.frombuffer(entry[end:], header["descr"])
            found[name] = flat.reshape(header["shape"])
    return found


def golden(folder: Path) -> Arrays:
    m = manifest(folder)
    spec, side = m["spec"], m["spec"]["input_size"]
    cells = (side // spec["net_stride"],) * 2
    maps = dict.fromkeys(("score", "offset_x", "offset_y"), (spec["num_lms"], *cells))
    near = dict.fromkeys(NEAR if spec["num_nb"] else (), (spec["num_lms"], spec["num_nb"], *cells))
    shapes = {"crops": (side, side, 3), **maps, **near}
    found = arrays(checked(folder, m["golden"]), *shapes)
    n = len(found["crops"])
    for name, shape in shapes.items():
        kind = np.uint8 if name == "crops" else np.float32
        need(n and found[name].dtype == kind and found[name].shape == (n, *shape), name)
    return found


def heads(folder: Path, name: str) -> Arrays | None:
    """Opens a variant's files as before a run."""
    m = manifest(folder)
    (variant,) = (v for v in m["variants"] if v["name"] == name)
    paths = [checked(folder, file) for file in variant["files"]]
    need(len({path.parent for path in paths}) == 1, "two folders")
    need({path.name for path in paths} >= FILES[variant["runtime"]], "not listed")
    for path in paths:
        if path.name == "heads.npz":
            found, shape = arrays(path, "weight", "bias"), (m["spec"]["num_lms"], 2, 1 + m["spec"]["num_nb"])
            weight, bias = found["weight"], found["bias"]
            need(weight.dtype != np.uint8 and bias.dtype == np.float32, "types of heads")
            need(weight.size and weight.shape == (*shape, weight.shape[-1]) and bias.shape == shape, "shapes of heads")
            return {key: value.astype(np.float32) for key, value in found.items()}
    return None


Size = tuple[int, int]


def maps_of(spec: Any, size: Size) -> dict[str, tuple[int, int, int]]:
    """A detector's outputs for pictures (width, height)."""
    found = {}
    for level in spec["levels"]:
        cells = (math.ceil(size[1] / level["stride"]), math.ceil(size[0] / level["stride"]))
        count = sum(prior["density"] ** 2 for prior in level["priors"])
        found |= {f"{name}_{level['stride']}": (n * count, *cells) for name, n in (("box", 4), ("score", 2))}
    return found


def detector_golden(folder: Path, size: Size) -> Arrays:
    """Pictures and maps, named without the size."""
    m, before = detector(folder), f"{size[0]}x{size[1]}_"
    shapes = {"pictures": (size[1], size[0], 3), **maps_of(m["spec"], size)}
    read = arrays(checked(folder, m["golden"]), *(before + name for name in shapes))
    found = {name: read[before + name] for name in shapes}
    n = len(found["pictures"])
    for name, shape in shapes.items():
        kind = np.uint8 if name == "pictures" else np.float32
        need(n and found[name].dtype == kind and found[name].shape == (n, *shape), name)
        need(np.isfinite(found[name]).all(), f"{name} holds NaN or infinity")
    return found


def detector_files(folder: Path, name: str, size: Size) -> list[str]:
    """Opens a variant's files for pictures of a size as before a run; their paths."""
    (variant,) = (v for v in detector(folder)["variants"] if v["name"] == name)
    plain = {"/".join(part for part in file["path"].split("/") if part != "."): file for file in variant["files"]}
    for place in (f"{name}/{size[0]}x{size[1]}", name):
        inside = {path: file for path, file in plain.items() if path.rpartition("/")[0] == place}
        if inside:
            need({path.rpartition("/")[2] for path in inside} >= FILES[variant["runtime"]], "not listed")
            return sorted(checked(folder, file).relative_to(folder).as_posix() for file in inside.values())
    raise ValueError("not for this size")


def neighbours(points: Any, count: int) -> list[list[int]]:
    def away(s: int, t: int) -> float:
        dx, dy = points[s][0] - points[t][0], points[s][1] - points[t][1]
        return float(dx * dx + dy * dy)

    every = range(len(points))
    return [sorted(every, key=lambda t, s=s: (away(s, t), t))[1 : 1 + count] for s in every]


def table(points: Any, count: int) -> list[list[int]]:
    flat = [near for row in neighbours(points, count) for near in row]
    rows = [[e for e, near in enumerate(flat) if near == landmark] for landmark in range(len(points))]
    most = max(map(len, rows))
    return [[row[m % len(row)] if row else -1 for m in range(most)] for row in rows]


def decode(spec: dict[str, Any], outputs: Arrays, heads: Arrays | None) -> tuple[Any, Any, Any]:
    count, near, grid = spec["num_lms"], spec["num_nb"], spec["input_size"] // spec["net_stride"]
    per = {"neighbor_x": near * grid**2, "neighbor_y": near * grid**2, "offsets": 2 * (1 + near)}
    sets = (["offset_x", "offset_y", *(NEAR if near else ())], ["features"], ["offsets"])
    (used, *_) = [["score", *names] for names in sets if outputs.keys() >= {"score", *names}] or [[]]
    need(used, "no set of outputs")
    for name in used:
        need(np.isfinite(outputs[name]).all(), f"{name} holds NaN or infinity")
        need(name == "features" or outputs[name].size == count * per.get(name, grid**2), f"size of {name}")
    of_heads = (1, heads["weight"].shape[-1], grid, grid) if heads else ()
    need("features" not in used or outputs["features"].shape in (of_heads, of_heads[1:]), "no heads, or not of these")
    flat = {name: outputs[name].reshape(count, -1, grid**2) for name in used if name not in ("features", "offsets")}
    cell = [max(range(grid**2), key=lambda i: (flat["score"][la, 0, i], -i)) for la in range(count)]
    seen = np.empty((count, 2, 1 + near))  # what every landmark predicts
    for landmark, won in enumerate(cell):
        if "offsets" in used:
            seen[landmark] = outputs["offsets"].reshape(count, 2, 1 + near)[landmark]
        elif "features" in used and heads:
            at = outputs["features"].reshape(-1, grid**2)[:, won]
            seen[landmark] = heads["weight"][landmark] @ at + heads["bias"][landmark]
        else:
            for axis, letter in enumerate("xy"):
                seen[landmark, axis, 0] = flat[f"offset_{letter}"][landmark, 0, won]
                seen[landmark, axis, 1:] = flat[f"neighbor_{letter}"][landmark, :, won] if near else 0
        seen[landmark] += np.array([[won % grid], [won // grid]])
    points = np.empty((count, 2))
    for landmark, row in enumerate(table(spec["points"], near)):
        about = [seen[e // near, :, 1 + e % near] for e in row if e >= 0]
        points[landmark] = sum(about, seen[landmark, :, 0]) / (1 + len(about)) / grid
    return points.clip(0, 1) if spec["clamp"] else points, flat["score"][range(count), 0, cell], cell


def rect(policy: str, box: list[float], width: int, height: int) -> list[int]:
    x, y, w, h = map(float, box)
    need(all(map(math.isfinite, box)) and w > 0 and h > 0, "empty")
    if policy == "test":
        mx, my = (x + w - x) * (1.2 - 1) / 2, (y + h - y) * (1.2 - 1) / 2
        left, top, right, bottom = x - mx, y - my, x + w + mx, y + h + my
    else:
        dx, dy = math.trunc(w * ((1.2 - 1) / 2)), math.trunc(h * ((1.2 - 1) / 2))
        left, top, right, bottom = x - dx, y + dy, x + w - 1 + dx, y + h - 1 + dy
    rect = [max(left, 0), max(top, 0), min(right, width - 1), min(bottom, height - 1)]
    rect = list(map(math.trunc, rect))
    need(rect[0] < rect[2] and rect[1] < rect[3], "outside")
    return rect


def cut(picture: NDArray[Any], rect: list[int], side: int) -> NDArray[Any]:
    crop = picture[rect[1] : rect[3], rect[0] : rect[2]].astype(np.float64)
    for axis in (0, 1):
        size = crop.shape[axis]
        p = (np.arange(side) + 0.5) * size / side - 0.5
        low, share = np.floor(p).astype(int), (p - np.floor(p)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        a, b = (np.take(crop, i.clip(0, size - 1), axis) for i in (low, low + 1))
        crop = a * (1 - share) + b * share
    return np.floor(crop + 0.5)


def to_picture(rect: list[int], points: NDArray[Any]) -> NDArray[Any]:
    left, top, right, bottom = rect
    return np.array([left, top]) + points * [right - left, bottom - top]
