"""A report as one HTML page: tables and charts, a style sheet inside, nothing loaded and no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from importlib.resources import files

from pipnet_edge.benchmarks.report import charts, speed_charts, tables
from pipnet_edge.benchmarks.report.contents import EMULATED, MEANING, MEASURED, PREDICTED, Drift, Report, Target
from pipnet_edge.benchmarks.report.svg import escape
from pipnet_edge.output import Table

# The style sheet is allowed by its hash, so that a result cannot bring another one.
POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """The whole page."""
    style = files("pipnet_edge.benchmarks.report").joinpath("page.css").read_text(encoding="utf-8")
    policy = POLICY.format(base64.b64encode(hashlib.sha256(style.encode()).digest()).decode())
    name, dates = escape(tables.title(report)), escape(tables.dates(report))
    head = (
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{name}{', ' if dates else ''}{dates}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
    )
    return "\n".join([*head, *_body(report, f"{name} <small>{dates}</small>"), "</body>", "</html>", ""])


def _body(report: Report, name: str) -> Iterator[str]:
    yield f"<header><h1>{name}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in report.made)
    yield "</header>"
    yield "<main>"
    yield from (_section(found) for found in (tables.glance(report), tables.facts(report)) if found)
    colour = charts.colours(report)
    for target in report.targets:
        yield from _target(target, report, colour)
    if report.parity or report.drift:
        yield "<h2>Accuracy</h2>"
    yield from map(_section, map(tables.of_parity, report.parity))
    yield from map(_drift, report.drift)
    yield "</main>"
    yield _legend(report)


def _target(target: Target, report: Report, colour: dict[str, int]) -> Iterator[str]:
    sections = {section.kind: section for section in tables.of_target(target)}
    if not sections:
        return
    yield f"<h2>{escape(target.name)}</h2>"
    drawn = {
        MEASURED: (
            speed_charts.latency(target, colour),
            speed_charts.stages(target),
            speed_charts.tradeoff(target, report.drift, colour),
            speed_charts.scaling(target, colour),
            charts.clocks(target),
        ),
        EMULATED: (charts.instructions(target),),
        PREDICTED: (charts.intervals(target, colour),),
    }
    for kind, section in sections.items():
        yield _section(section, _figures(chart for chart in drawn[kind] if chart), within=True)


def _drift(drift: Drift) -> str:
    faces, scale = charts.faces(drift)
    below = ""
    if faces:
        below = (
            '<h4>Mean drift of each landmark</h4><p class="caption">On the mean face, all variants on one scale; the '
            f'largest three carry their index.</p><div class="scale">{scale}</div>{_figures(faces, "faces")}'
        )
    return _section(tables.of_drift(drift), below)


def _figures(found: Iterable[charts.Chart], style: str = "charts") -> str:
    figures = [
        f"<figure><figcaption><b>{escape(c.title)}</b> {escape(c.caption)}</figcaption>{c.svg}</figure>" for c in found
    ]
    return f'<div class="{style}">{"".join(figures)}</div>' if figures else ""


def _section(section: tables.Section, below: str = "", within: bool = False) -> str:
    """within: under the heading of its target."""
    badge = f' <span class="badge {section.kind}">{section.kind}</span>' if section.kind else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in section.notes)
    parts = (
        f'<section class="panel {section.kind}">',
        f"<h3>{escape(section.title if within else section.name)}{badge}</h3>",
        *(f'<p class="alarm">{escape(alarm)}</p>' for alarm in section.alarms),
        f'<div class="scroll">{_table(section.table, section)}</div>',
        f'<div class="notes">{notes}</div>' if notes else "",
        below,
        "</section>",
    )
    return "\n".join(part for part in parts if part)


def _table(table: Table, section: tables.Section) -> str:
    right = [column.startswith(">") for column in table.columns]
    style = [' class="n"' if flush else "" for flush in right]
    head = "".join(f"<th{s}>{escape(c.removeprefix('>'))}</th>" for c, s in zip(table.columns, style, strict=True))
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td{s or _short(cell)}>{escape(cell)}</td>" for cell, s in zip(row, style, strict=True))
        remarks = section.remarks.get(index, ())
        rows.append(f"<tr{' class=remarked' if remarks else ''}>{cells}</tr>")
        if remarks:
            told = " · ".join(map(escape, remarks))
            rows.append(f'<tr class="remark"><td colspan="{len(row)}"><div class="told">{told}</div></td></tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _short(cell: str) -> str:
    """The class that keeps a few words on one line, in a table that scrolls."""
    return ' class="w"' if len(cell) <= 24 else ""


def _legend(report: Report) -> str:
    """The meaning of each kind of number that the report has."""
    kinds = dict.fromkeys(section.kind for section in tables.sections(report) if section.kind)
    entries = (f'<li><span class="badge {k}">{k}</span> {escape(MEANING[k])}</li>' for k in kinds)
    return f"<footer><ul>{''.join(entries)}</ul></footer>"
