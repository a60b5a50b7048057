"""Results of bench, parity and drift as one file to hand on: an HTML page, Markdown or CSV.

The page needs no other file: styles and drawings are inside, and there are no scripts. Results are untrusted, so all
text is escaped for its format.
"""

from __future__ import annotations

import csv as csv_files
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pipnet_edge import files
from pipnet_edge.benchmarks.report import tables
from pipnet_edge.benchmarks.report.contents import EMULATED, MEANING, MEASURED, PREDICTED, Report, Target
from pipnet_edge.errors import EdgeError
from pipnet_edge.output import Table


def write(report: Report, output: Path) -> None:
    """Writes a report in the format of its suffix: .html, .md or .csv. Writes all or nothing. Raises EdgeError."""
    if output.suffix.lower() not in FORMATS:
        raise EdgeError(f"cannot write a report as {output}; allowed: {', '.join(FORMATS)}")
    files.write(output, FORMATS[output.suffix.lower()](report).encode())


def html(report: Report) -> str:
    """One page with tables and charts."""
    from pipnet_edge.benchmarks.report import page

    return page.page(report)


# --- Markdown.


def markdown(report: Report) -> str:
    """The page's tables."""
    lines = [f"# {_plain(heading(report))}", "", *(f"- {_plain(line)}" for line in report.made), ""]
    for section in tables.sections(report):
        lines += [f"## {_plain(section.name)}", ""]
        if section.kind:
            lines += [f"**{section.kind}**: {MEANING[section.kind]}", ""]
        lines += [f"**{_plain(alarm)}**\n" for alarm in section.alarms]
        lines += [*_markdown_table(section.table), ""]
        for index, remarks in section.remarks.items():
            row = _plain(_row_name(section.table, index))
            lines += [f"- {row}: {_plain(remark)}" for remark in remarks]
        lines += ["", *(f"{_plain(note)}\n" for note in section.notes)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def heading(report: Report) -> str:
    return ", ".join(filter(None, (tables.title(report), tables.dates(report))))


def _row_name(table: Table, index: int) -> str:
    """A row's name: its variant, and its threads if there is such a column."""
    row = dict(zip(table.columns, table.rows[index], strict=True))
    return " ×".join(filter(None, (row["variant"], row.get(">threads"))))


def _markdown_table(table: Table) -> Iterator[str]:
    header = [_plain(column.removeprefix(">")) for column in table.columns]
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    widths = [max(3, *map(len, cells)) for cells in zip(header, *rows, strict=True)]
    right = [column.startswith(">") for column in table.columns]
    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    for row in (header, rule, *rows):
        cells = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        yield f"| {' | '.join(cells)} |"


# The start of code, emphasis, a link, HTML, an entity or a table's cell; at the start of a line, of a title or a quote.
MARKUP = re.compile(r"[\\`*~|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])|^[#>]")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, links, pictures or HTML."""
    return MARKUP.sub(lambda found: f"\\{found[0]}", text)


# --- CSV.

CSV_COLUMNS = (
    *("kind", "source", "target", "variant", "threads", "arithmetic", "runtime", "bytes", "frames"),
    *("p50_ms", "p90_ms", "p99_ms", "fps", "speedup_over_fp32", "load_ms", "first_ms", "peak_bytes"),
    *("preprocess_ms", "inference_ms", "decode_ms", "manifest_px"),
    *("emulated_core", "emulated_px", "emulated_flips", "instructions", "simd", "memory"),
    *("predicted_ms", "predicted_low_ms", "predicted_high_ms", "anchored_ms", "anchor"),
    *(
        "reference",
        "images",
        "px_mean",
        "px_mean_low",
        "px_mean_high",
        "px_p95",
        "px_max",
        "flips",
        "flips_percent",
        "nme_change",
    ),
    *("warnings", "failure"),
)
Cell = str | int | float | None


def csv(report: Report) -> str:
    """One row per run, one header for all kinds of numbers. Two kinds never share a column with numbers of speed."""
    out = io.StringIO()
    # All text is in quotes, so that a program that splits at other characters finds no formula after one.
    writer = csv_files.DictWriter(out, CSV_COLUMNS, restval="", quoting=csv_files.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writeheader()
    for row in _csv_rows(report):
        cells = {key: _csv_cell(value) for key, value in row.items()}
        writer.writerow(cells)
    return out.getvalue()


def _csv_cell(value: Cell) -> str | int | float:
    """A cell. Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.lstrip()[:1] in tuple("=+-@＝＋－＠") else value
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _csv_rows(report: Report) -> Iterator[dict[str, Cell]]:
    for target in report.targets:
        yield from _measured_rows(target)
        for counted in target.counted:
            frame = counted.frame
            row: dict[str, Cell] = {"kind": EMULATED, "target": target.name, "variant": counted.variant}
            row |= {"runtime": counted.runtime, "bytes": counted.size, "emulated_core": counted.cpu}
            row |= {"emulated_px": counted.px, "emulated_flips": counted.flips, "images": counted.images}
            counts = {"instructions": frame.total, "simd": frame.simd, "memory": frame.memory}
            yield row | (counts if counted.stages else {}) | {"failure": counted.failure}
        for guess in target.predicted:
            row = {"kind": PREDICTED, "target": target.name, "variant": guess.variant, "threads": guess.threads}
            row |= {"bytes": guess.size, "predicted_ms": guess.ms, "predicted_low_ms": guess.low}
            row |= {"predicted_high_ms": guess.high, "anchored_ms": guess.anchored, "anchor": guess.anchor}
            yield row | {"warnings": guess.note}
    yield from _accuracy_rows(report)


def _measured_rows(target: Target) -> Iterator[dict[str, Cell]]:
    for run in target.measured:
        row: dict[str, Cell] = {"kind": MEASURED, "target": target.name, "variant": run.variant}
        row |= {"threads": run.threads, "arithmetic": run.arithmetic, "runtime": run.runtime, "bytes": run.size}
        row |= {"frames": run.frames.size, "load_ms": run.load_ms, "first_ms": run.first_ms}
        row |= {"peak_bytes": run.peak_bytes, "manifest_px": run.px, "failure": run.failure}
        if run.frames.size:
            p50, p90, p99 = (run.frame(q) for q in (0.5, 0.9, 0.99))
            row |= {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "fps": 1000 / p50 if p50 > 0 else None}
            row |= {f"{stage}_ms": value for stage, value in tables.stage_medians(run).items()}
        yield row | {"speedup_over_fp32": tables.speed_up(target, run), "warnings": "; ".join(target.warnings(run))}


def _accuracy_rows(report: Report) -> Iterator[dict[str, Cell]]:
    for parity in report.parity:
        for check in parity.rows:
            row: dict[str, Cell] = {"kind": f"parity {parity.kind}", "source": parity.source}
            row |= {"target": parity.target, "variant": check.variant, "reference": check.reference}
            row |= {"images": check.images, "flips": check.flips}
            row |= {"px_mean": check.px_mean, "px_max": check.px_max, "failure": check.failure or check.skipped}
            yield row
    for drift in report.drift:
        for lost in drift.rows:
            value = {name: estimate.value for name, estimate in lost.drift.items()}
            row = {
                "kind": f"drift {MEASURED}",
                "source": drift.source,
                "variant": lost.variant,
                "reference": drift.reference,
            }
            row |= {"images": lost.images, "failure": lost.failure}
            row |= {name: value.get(name) for name in ("px_mean", "px_p95", "px_max")}
            row |= {"flips_percent": value.get("flips"), "nme_change": value.get("nme")}
            if mean := lost.drift.get("px_mean"):
                row |= {"px_mean_low": mean.low, "px_mean_high": mean.high}
            yield row


FORMATS: dict[str, Callable[[Report], str]] = {".html": html, ".md": markdown, ".csv": csv}
