"""Face detectors as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipnet_edge.bundle import FacesParity
from pipnet_edge.detect.spec import named
from pipnet_edge.output import Table
from pipnet_edge.words import joined, megabytes

if TYPE_CHECKING:
    from pipnet_edge.benchmarks.accuracy.faces import Row
    from pipnet_edge.bundle import DetectorBundle

# Columns that compare what detectors find.
COMPARED = (">faces", ">lost", ">new", ">IoU", ">IoU min", ">score", ">map max")


def network(bundle: DetectorBundle) -> Table:
    """A bundle's network and where it came from."""
    spec, source = bundle.spec, bundle.source
    before, after = map(megabytes, source.onnx_bytes)
    rows = (
        ("detector", spec.detector),
        ("input", " or ".join(named(size) for size in spec.input_sizes)),
        ("priors", f"{spec.count(*spec.input_sizes[0])}, strides {joined([level.stride for level in spec.levels])}"),
        ("a face", f"score above {spec.threshold:g}"),
        ("parameters", f"{source.parameters / 1e6:.2f} M"),
        ("ONNX nodes", f"{source.onnx_nodes[0]} -> {source.onnx_nodes[1]}"),
        ("ONNX size", f"{before} -> {after}"),
    )
    return Table(["network", ""], rows)


def variants(bundle: DetectorBundle) -> Table:
    """A bundle's variants with the parity in its manifest."""
    rows = []
    for variant in bundle.variants:
        found = variant.parity if isinstance(variant.parity, FacesParity) else None
        rows.append([variant.name, megabytes(variant.size), *_compared(found)])
    return Table(["variant", ">size", *COMPARED], rows)


def parity(rows: Sequence[Row]) -> Table:
    """Variants compared with a reference."""
    cells = []
    for row in rows:
        result = "absent" if row.skipped else "FAIL" if row.failure else "ok"
        cells.append([row.variant, result, *_compared(row.parity)])
    return Table(["variant", "", *COMPARED], cells)


def _compared(found: FacesParity | None) -> list[str]:
    if not found:
        return [""] * len(COMPARED)
    counts, shares = (found.faces, found.lost, found.new), (found.iou_mean, found.iou_min, found.score_max)
    return [*map(str, counts), *(f"{share:.3f}" for share in shares), f"{found.map_max:.1e}"]
