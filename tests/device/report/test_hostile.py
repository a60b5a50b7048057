"""Nothing in a result acts: markup, links, formulas and styles in it stay text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from html.parser import HTMLParser

import pytest

from pipnet_edge.benchmarks import report
from pipnet_edge.benchmarks.speed.result import Counted, Predicted, State
from pipnet_edge.targets.emulated.instructions import Count

HOSTILE = "=1+1 <script>alert(1)</script> | `x` ![p](http://h/i.png) \"'&"


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


class Page(HTMLParser):
    """The tags and attributes of a page, and its text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.inside = set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.inside = tag

    def handle_data(self, data):
        if self.inside != "style":
            self.text.append(data)


@pytest.fixture
def hostile(run, result, drift_result, save):
    facts = {"rpi4": {"board": HOSTILE, HOSTILE: "x"}}
    guess = Predicted("rpi4", HOSTILE, 1, 1, 1.0, 0.5, 2.0, HOSTILE, HOSTILE, 1.0, HOSTILE)
    states = [State(0.0, (1800,), 50.0, 4, None), State(1.0, (1800,), 50.0, 4, None)]
    runs = [run(HOSTILE, states=states, failure=HOSTILE), run(HOSTILE, 2, [], HOSTILE), run("ncnn-fp32")]
    count = Counted("rpi4", HOSTILE, 1, HOSTILE, HOSTILE, 1, 1.0, 1, {"a": Count(3, 1, 1)}, HOSTILE)
    bench = result(runs, [count], [guess], facts, network=HOSTILE, tool=HOSTILE, created=HOSTILE, bundle=HOSTILE)
    check = {"variant": HOSTILE, "reference": HOSTILE, "images": 1, "landmarks": 1, "failure": HOSTILE}
    lost = drift_result(HOSTILE, reference=HOSTILE, notes=[HOSTILE])
    return report.make([save(bench), save({"rows": [check]}, "parity"), save(lost, "drift")])


def test_markup_in_results_stays_text(hostile):
    text = report.html(hostile)
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "a", "link", "form", "base", "use", "image"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "xlink:href", "srcset", "style", "onload"}
    assert "<script" not in text
    assert any(HOSTILE in piece for piece in page.text)
    assert "url(" not in text


def test_the_policy_allows_the_style_sheet_alone(hostile):
    text = report.html(hostile)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(Page(text).attributes)["content"]
    assert any(f"default-src 'none'; style-src 'sha256-{digest}'" in str(v) for _, v in Page(text).attributes), policy


def test_markdown_shows_text_as_it_is(hostile):
    text = report.markdown(hostile)
    assert not re.search(r"(?<!\\)(`|<script|<img|\]\()", text)
    assert r"\<script>alert(1)\</script> \| \`x\` ![p\](http" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    for line, width, before in zip(tables, widths, [0, *widths], strict=False):
        assert set(line) <= set("|-: ") or before in (0, width) or before != width, line


def test_spreadsheets_execute_no_cell(run, result, hostile, save):
    words = [*"=+-@", "＝1", " =1", "a;=1"]
    others = [run(f"{word}x", failure=word) for word in words]
    for made in (hostile, report.make([save(result(others), name="others")])):
        rows = rows_of(report.csv(made))
        for cell in (cell for row in rows for cell in row.values() if cell):
            assert re.fullmatch(r"-?[\d.]+(e[+-]\d+)?", cell) or cell.lstrip()[0] not in "=+-@＝＋－＠"
    # A program that splits at semicolons sees one cell, in quotes.
    assert '"a;=1x"' in report.csv(made)


def test_numbers_below_zero_stay_numbers(drift_result, save):
    lost = drift_result()
    lost["rows"][0]["summary"]["drift"]["nme"] = {"value": -0.25, "low": -0.5, "high": -0.1}
    made = report.make([save(lost, "drift")])
    assert rows_of(report.csv(made))[0]["nme_change"] == "-0.25"
    assert "-0.250 [-0.500, -0.100]" in report.markdown(made)
