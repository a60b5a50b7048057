"""Reports: what they are made of, their tables and numbers, and that nothing in a result can act in them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipnet_edge.benchmarks.accuracy import drift as drifts
from pipnet_edge.benchmarks.accuracy import metrics, parity
from pipnet_edge.benchmarks.report import charts as report_charts
from pipnet_edge.benchmarks.report import plots, speed
from pipnet_edge.benchmarks.report import tables as report_tables
from pipnet_edge.benchmarks.report import write as report
from pipnet_edge.benchmarks.report.data import Report, Target
from pipnet_edge.benchmarks.speed.result import VERSION, Counted, Measured, Predicted, Result, Settings, State
from pipnet_edge.errors import EdgeError
from pipnet_edge.targets.emulated.instructions import Count

HOSTILE = "=1+1 <script>alert(1)</script> | `x` ![p](http://h/i.png) \"'&"


def run(variant="ncnn-int8", threads=1, samples=None, failure=None, states=(), target="rpi4", px=0.117):
    """One measured run; samples: milliseconds of inference."""
    if samples is None:
        samples = np.random.default_rng(len(variant) + threads).normal(20 / threads, 0.3, 60).round(4).tolist()
    stages = {"preprocess": (0.4,) * len(samples), "inference": tuple(samples), "decode": (0.2,) * len(samples)}
    told = ("ncnn 1.0", (0, 1), 40.0, 31.0, 97_000_000)
    return Measured(target, variant, "int8", 10_500_000, threads, px, *told, stages, tuple(states), failure)


def counted(variant="ncnn-int8", target="rpi4"):
    parts = {"inference": Count(300_000_000, 150_000_000, 90_000_000), "decode": Count(2_000_000, 0, 0)}
    return Counted(target, variant, 10_500_000, "cortex-a72", "ncnn 1.0", 4, 0.118, 1, parts, None)


def predicted(variant="ncnn-int8", target="rpi3"):
    return Predicted(target, variant, 10_500_000, 4, 51.5, 40.25, 70.75, "near it: 62 ms", "a page", 54.125, "a guess")


def result(measured=(), counts=(), guesses=(), facts=None, **changes):
    known = {"rpi4": {"board": "Raspberry Pi 4", "cores": "4", "governor": "performance"}} if facts is None else facts
    fields = {
        "version": VERSION,
        "tool": "0.1.0",
        "created": "2026-11-22T20:31:05+00:00",
        "network": "mobilenet_v2, 68 landmarks",
        "bundle": "ed070ab8e10f00",
        "settings": Settings(),
        "facts": known,
        "measured": tuple(measured),
        "counted": tuple(counts),
        "predicted": tuple(guesses),
    }
    return Result(**{**fields, **changes})


@pytest.fixture
def save(tmp_path):
    """Writes an envelope as --json prints it."""

    def write(content, command="bench", name=None):
        path = tmp_path / f"{name or command}.json"
        data = content.to_json() if isinstance(content, Result) else content
        path.write_text(json.dumps({"schema": "pipnet-edge/1", "command": command, "ok": True, "result": data}))
        return path

    return write


def drift_result(variant="ncnn-int8", value=0.25, **changes):
    """What drift prints, by its own classes."""
    chance = np.random.default_rng(0)
    sample = metrics.Sample(chance.uniform(0, 2 * value, (12, 3)), np.zeros((12, 3), bool))
    face = ((0.1, 0.2), (0.9, 0.2), (0.5, 0.9))
    rows = [drifts.Row(variant, metrics.summarise(sample), mean_face=face), drifts.Row("mnn-int8", failure="no\nway")]
    return {"reference": "onnx-fp32", "notes": [], "rows": [row.to_json() for row in rows], "pictures": []} | changes


def parity_result():
    good = parity.Row("ncnn-fp32", "torch", 4, 68, {"score": (1e-6, 1e-7)}, 0, 1e-5, 5e-5, "score")
    rows = [
        good,
        parity.Row("mnn-int8", "torch", 4, 68, failure="crashed"),
        parity.Row("x", "torch", 4, 68, skipped="y"),
    ]
    return {"rows": [row.to_json() for row in rows]}


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


# --- Reading.


def test_all_three_results_in_one_report(save):
    bench = result([run()], [counted()], [predicted()])
    made = report.make([save(bench), save(parity_result(), "parity"), save(drift_result(), "drift")])
    assert made.network == "mobilenet_v2, 68 landmarks"
    assert [target.name for target in made.targets] == ["rpi4", "rpi3"]
    assert made.targets[0].measured == bench.measured
    assert made.targets[1].predicted == bench.predicted
    assert [row.failure or row.skipped for row in made.parity[0].rows] == [None, "crashed", "y"]
    lost, failed = made.drift[0].rows
    assert (lost.variant, lost.images, len(lost.landmarks), len(lost.mean_face)) == ("ncnn-int8", 12, 3, 3)
    assert failed.failure == "no way"


def test_the_same_target_twice_is_told_apart_by_its_file(save):
    first, second = save(result([run()]), name="monday"), save(result([run()]), name="tuesday")
    other = save(result([run(target="rpi5")], facts={"rpi5": {}}), name="rest")
    made = report.make([first, second, first, other])
    assert [target.name for target in made.targets] == ["rpi4 (monday)", "rpi4 (tuesday)", "rpi5"]


def test_what_is_no_result_is_refused(save, tmp_path):
    (tmp_path / "text.json").write_text("hello")
    fast = result([run()])
    refused = {
        tmp_path / "absent.json": "no result",
        tmp_path / "text.json": "not a result",
        save({"rows": []}, "convert"): "'convert'; a report takes those of bench, parity, drift",
        save(result([run()], version=99), name="new"): "version 99",
        save({"rows": [{"variant": 3}]}, "parity"): r"rows\[0\].variant is 3",
        save({"rows": 3}, "drift"): "has no rows",
        save({}, "bench", "failed"): "holds no result: that bench failed",
        save(drift_result(reference=None), "drift", "none"): "reference is None",
        save(result([run(samples=[1.0, -3.0])]), name="below"): "took no time",
        save(result([run(samples=[1.0, 1e30])]), name="huge"): "holds the number 1e\\+30",
    }
    for path, message in refused.items():
        with pytest.raises(EdgeError, match=message) as caught:
            report.make([path])
        assert "\n" not in str(caught.value)
    with pytest.raises(EdgeError, match="different networks"):
        report.make([save(fast, name="a"), save(result([run()], network="resnet18"), name="b")])
    with pytest.raises(EdgeError, match="at least one result"):
        report.make([])


def test_a_mean_face_has_as_many_points_as_there_are_landmarks(save):
    broken = drift_result()
    broken["rows"][0]["mean_face"] = [[0.1, 0.2]]
    with pytest.raises(EdgeError, match="1 points and 3 landmarks"):
        report.make([save(broken, "drift")])


# --- Numbers.


def test_statistics_use_every_sample(save):
    samples = np.random.default_rng(1).gamma(4, 5, 3000).round(4)
    made = report.make([save(result([run("ncnn-int8", samples=samples.tolist())]))])
    (row,) = rows_of(report.csv(made))
    frames = samples + 0.6
    for quantile, column in ((0.5, "p50_ms"), (0.9, "p90_ms"), (0.99, "p99_ms")):
        assert float(row[column]) == pytest.approx(np.quantile(frames, quantile), rel=1e-5)
    assert float(row["fps"]) == pytest.approx(1000 / np.median(frames), rel=1e-5)
    assert (row["frames"], row["decode_ms"]) == ("3000", "0.2")
    assert f"{np.median(frames):.2f}" in report.markdown(made)
    assert f">{np.quantile(frames, 0.99):.2f}</td>" in report.html(made)


def test_speed_up_is_over_fp32_of_the_same_runtime_and_threads(save):
    runs = [run("ncnn-fp32", 1, [29.4] * 5), run("ncnn-fp32", 2, [19.4] * 5), run("mnn-int8", 1, [1.4] * 5)]
    runs += [run("ncnn-int8", 1, [9.4] * 5), run("ncnn-int8", 4, [4.4] * 5)]
    found = [row["speedup_over_fp32"] for row in rows_of(report.csv(report.make([save(result(runs))])))]
    assert found == ["", "", "", "3.0", ""]


def test_warnings_and_failures_are_told(save):
    slow = {"rpi4": {"governor": "powersave", "cores": "4"}}
    runs = [run("ncnn-fp32"), run("ncnn-int8", samples=[20.0] * 30 + [40.0] * 30), run("mnn-int8", 1, [], "SIGILL")]
    made = report.make([save(result(runs, facts=slow))])
    for text in (report.html(made), report.markdown(made)):
        # What is wrong with every run is said once.
        assert text.count("governor powersave") == 1
        assert "All runs: governor powersave" in text
        assert text.count("drifting: ") == 1
        assert text.count("failed: SIGILL") == 1
    assert [row["failure"] for row in rows_of(report.csv(made))] == ["", "", "SIGILL"]


SHARED = {"kind", "source", "target", "variant", "threads", "bytes", "runtime", "images", "warnings", "failure"}


def test_kinds_share_no_column_of_numbers(save):
    made = report.make([save(result([run()], [counted()], [predicted(target="rpi4")]))])
    rows = {row["kind"]: {name for name, cell in row.items() if cell} for row in rows_of(report.csv(made))}
    assert set(rows) == {"measured", "emulated", "predicted"}
    for kind, columns in rows.items():
        for other in set(rows) - {kind}:
            assert columns & rows[other] <= SHARED
    sections = [section for section in report_tables.sections(made) if section.target]
    assert [section.kind for section in sections] == ["measured", "emulated", "predicted"]
    columns = [{*section.table.columns} for section in sections]
    assert columns[0] & columns[2] == {"variant", ">threads", ">size MB"}
    assert columns[0] & columns[1] == {"variant", ">size MB", ">px"}
    page = report.html(made)
    for kind in rows:
        assert f'<section class="panel {kind}">' in page
        assert f'<span class="badge {kind}">{kind}</span>' in page
        assert f"**{kind}**" in report.markdown(made)
    # A prediction is never among what is fastest.
    glance = report_tables.glance(report.make([save(result((), (), [predicted()]))]))
    assert glance is None


def test_counts_and_predictions(save):
    made = report.make([save(result((), [counted()], [predicted()]))])
    emulated, guess = rows_of(report.csv(made))
    assert [emulated[name] for name in ("instructions", "simd", "memory")] == ["302000000", "150000000", "90000000"]
    assert [guess[f"predicted_{name}ms"] for name in ("", "low_", "high_")] == ["51.5", "40.25", "70.75"]
    for text in (report.html(made), report.markdown(made)):
        for cell in ("302.0", "51.5", "40.2 – 70.8", "54.1", "near it: 62 ms", "a page", "a guess"):
            assert cell in text


def test_parity_under_emulation_is_no_measurement(save):
    there = save(parity_result() | {"target": "rpi4", "kind": "emulated"}, "parity")
    made = report.make([there, save(parity_result(), "parity", "here")])
    first, second = report_tables.sections(made)
    assert (first.name, first.kind) == ("Parity (rpi4)", "emulated")
    assert (second.name, second.kind) == ("Parity (here.json)", "measured")
    assert [row["kind"] for row in rows_of(report.csv(made))] == ["parity emulated"] * 3 + ["parity measured"] * 3
    with pytest.raises(EdgeError, match="'predicted'; parity is measured or emulated"):
        report.make([save(parity_result() | {"kind": "predicted"}, "parity")])


# --- Plots.


def charts(made):
    return re.findall(r"<figcaption><b>(.*?)</b>", report.html(made))


def test_sections_without_data_are_left_out(save):
    assert charts(report.make([save(parity_result(), "parity")])) == []
    assert charts(report.make([save(result((), [counted()]))])) == ["Instructions of a frame"]
    assert charts(report.make([save(result((), (), [predicted()]))])) == ["Predicted latency"]
    assert charts(report.make([save(result([run(failure="no", samples=[])]))])) == []
    assert charts(report.make([save(result([run()]))])) == ["Latency of a frame", "Stages of a frame"]
    states = [State(0.0, (), 50.0, None, None), State(1.0, (), 51.0, None, None)]
    assert "Frequency and temperature" in charts(report.make([save(result([run(states=states)]))]))
    two = [run(threads=1), run(threads=2)]
    assert "Thread scaling" in charts(report.make([save(result(two))]))
    assert "Thread scaling" not in charts(report.make([save(result(two[1:]))]))
    faces = charts(report.make([save(drift_result(), "drift")]))
    assert faces == ["ncnn-int8"]
    assert charts(report.make([save({"reference": "a", "rows": [], "notes": []}, "drift")])) == []


def test_speed_against_drift_says_where_drift_comes_from(save):
    bench = save(result([run("onnx-fp32", px=0.5), run("ncnn-int8", px=0.75), run("mnn-fp16", px=None)]))
    plain = report.make([bench])
    (chart,) = [speed.tradeoff(t, plain.drift, report_charts.colours(plain)) for t in plain.targets]
    assert "from the bundle's manifest (parity)" in chart.caption
    assert "0.750 px" in chart.svg
    made = report.make([bench, save(drift_result("ncnn-int8", 0.25), "drift")])
    (chart,) = [speed.tradeoff(t, made.drift, report_charts.colours(made)) for t in made.targets]
    assert "Mean drift over 12 faces against onnx-fp32" in chart.caption
    assert "manifest" not in chart.caption
    assert "0.750 px" not in chart.svg
    assert "onnx-fp32 ×1: " in chart.svg


def test_the_slowest_samples_are_always_drawn():
    frames = np.random.default_rng(0).normal(20, 1, 5000)
    frames[[17, 3000]] = 90, 70
    drawn = speed.chosen(frames)
    assert len(drawn) == speed.DOTS
    assert set(np.sort(frames)[-speed.EXTREMES :]) <= set(drawn)
    assert np.median(drawn) == pytest.approx(20, abs=0.5)
    few = frames[:100]
    assert speed.chosen(few) is few


def test_the_shape_of_a_run_holds_no_sample_beyond_the_axis(save):
    """Clipped samples would pile up at its end."""
    samples = [10.0 + 0.01 * i for i in range(60)] + [500.0] * 9
    made = report.make([save(result([run(samples=samples)]))])
    (chart,) = [speed.latency(target, report_charts.colours(made)) for target in made.targets]
    shape, dots = (re.search(rf'<path class="{name} c0" d="([^"]+)"', chart.svg)[1] for name in ("fill", "dots"))
    assert max(float(x) for x in re.findall(r"[ML]([\d.]+) ", shape)) < 250
    assert max(float(x) for x in re.findall(r"M([\d.]+) ", dots)) < 250
    assert "max 501 ▸" in chart.svg


def test_states_are_thinned_to_their_extremes():
    points = [(float(i), 50.0) for i in range(1000)]
    points[333], points[334] = (333.0, 90.0), (334.0, 10.0)
    thin = report_charts.thinned(points, 100)
    assert len(thin) <= 100
    assert {points[333], points[334]} <= set(thin)
    assert thin == sorted(thin)
    assert report_charts.thinned(points[:50], 100) == points[:50]


def test_forty_runs_of_ten_thousand_samples_stay_below_two_megabytes():
    samples = np.random.default_rng(0).normal(20, 1, 10_000).round(4)
    states = tuple(State(0.25 * i, (1800, 2400), 60.0 + i % 7, 0, 0.1) for i in range(1200))
    runs = tuple(run(f"ncnn-{i}", samples=samples.tolist(), states=states) for i in range(40))
    assert len(report.html(Report("n", (), (), (Target("t", {}, runs, (), ()),), (), ()))) < 2_000_000


def test_axes_have_round_ticks():
    assert plots.Axis(0, 47, 0, 100).ticks(5) == [0, 10, 20, 30, 40]
    assert plots.Axis(0.3, 0.9, 0, 100).ticks(5) == pytest.approx([0.4, 0.6, 0.8])
    assert plots.Axis(0.001, 2, 0, 100, log=True).ticks(5) == pytest.approx([0.001, 0.01, 0.1, 1])
    assert plots.Axis(3, 40, 0, 100, log=True).ticks(5) == pytest.approx([5, 10, 20])
    assert plots.Axis(5, 5, 0, 100).ticks(5) == [5]
    axis = plots.Axis(1, 100, 0, 200, log=True)
    assert [axis(value) for value in (-1, 1, 10, 100, 1000)] == pytest.approx([0, 0, 100, 200, 200])


def test_labels_in_a_column_keep_their_order_and_distance():
    places = plots.spread([50, 51, 52, 90, 49.5], 10, 0, 100)
    assert np.diff(np.sort(places)).min() >= 10 - 1e-9
    assert np.argsort(places).tolist() == np.argsort([50, 51, 52, 90, 49.5]).tolist()
    assert places[3] == 90
    crowd = plots.spread([99.0] * 30, 10, 0, 100)
    assert 0 <= min(crowd) <= max(crowd) <= 100


def test_labels_beside_points_do_not_lie_over_each_other():
    chance = np.random.default_rng(3)
    points = [tuple(point) for point in chance.uniform(0, 1, (14, 2)) * (300, 200) + 40]
    points[:3] = [(100.0, 100.0), (101.0, 101.0), (102.0, 99.0)]
    drawn = "".join(plots.labels(points, [f"variant-{i}" for i in range(14)], (0, 0, 440, 280)))
    found = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', drawn)]
    assert len(found) == 14
    wide = plots.width("variant-1")
    for i, (x, y) in enumerate(found):
        for a, b in found[i + 1 :]:
            assert abs(x - a) >= wide - 1 or abs(y - b) >= 11


# --- Nothing in a result acts.


@pytest.fixture
def hostile(save):
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


def test_spreadsheets_execute_no_cell(hostile, save):
    words = [*"=+-@", "＝1", " =1", "a;=1"]
    others = [run(f"{word}x", failure=word) for word in words]
    for made in (hostile, report.make([save(result(others), name="others")])):
        rows = rows_of(report.csv(made))
        for cell in (cell for row in rows for cell in row.values() if cell):
            assert re.fullmatch(r"-?[\d.]+(e[+-]\d+)?", cell) or cell.lstrip()[0] not in "=+-@＝＋－＠"
    # A program that splits at semicolons sees one cell, in quotes.
    assert '"a;=1x"' in report.csv(made)


def test_numbers_below_zero_stay_numbers(save):
    lost = drift_result()
    lost["rows"][0]["summary"]["drift"]["nme"] = {"value": -0.25, "low": -0.5, "high": -0.1}
    made = report.make([save(lost, "drift")])
    assert rows_of(report.csv(made))[0]["nme_change"] == "-0.25"
    assert "-0.250 [-0.500, -0.100]" in report.markdown(made)


# --- Writing.


def test_the_suffix_says_what_is_written(save, tmp_path):
    made = report.make([save(result([run()]))])
    for suffix, begin in ((".html", "<!doctype html>"), (".md", "# PIPNet"), (".CSV", '"kind",')):
        output = tmp_path / f"out{suffix}"
        report.write(made, output)
        assert output.read_text().startswith(begin)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EdgeError, match=r"out.pdf; allowed: .html, .md, .csv"):
        report.write(made, tmp_path / "out.pdf")
    with pytest.raises(EdgeError, match="cannot write"):
        report.write(made, tmp_path / "absent" / "out.html")
    assert sorted(tmp_path.iterdir()) == before


def test_title_with_network_and_date(save):
    first, last = result([run()]), result([run()], created="2026-11-24T01:00:00+00:00")
    made = report.make([save(first, name="a"), save(last, name="b")])
    title = "PIPNet mobilenet_v2, 68 landmarks, 2026-11-22 – 2026-11-24"
    assert f"<title>{title}</title>" in report.html(made)
    assert report.markdown(made).startswith(f"# {title}\n")
    assert "a: 2026-11-22 20:31 UTC, pipnet-edge 0.1.0, bundle ed070ab8e10f" in report.markdown(made)
