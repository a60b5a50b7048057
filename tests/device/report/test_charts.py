"""Charts: which there are, what they say, and where their lines, ticks and labels lie."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipnet_edge.benchmarks import report
from pipnet_edge.benchmarks.report import charts as report_charts
from pipnet_edge.benchmarks.report import speed_charts, svg
from pipnet_edge.benchmarks.report.contents import Report, Target
from pipnet_edge.benchmarks.speed.result import State


def charts(made):
    return re.findall(r"<figcaption><b>(.*?)</b>", report.html(made))


def test_sections_without_data_are_left_out(run, counted, predicted, result, drift_result, parity_result, save):
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


def test_speed_against_drift_says_where_drift_comes_from(run, result, drift_result, save):
    bench = save(result([run("onnx-fp32", px=0.5), run("ncnn-int8", px=0.75), run("mnn-fp16", px=None)]))
    plain = report.make([bench])
    (chart,) = [speed_charts.tradeoff(t, plain.drift, report_charts.colours(plain)) for t in plain.targets]
    assert "from the bundle's manifest (parity)" in chart.caption
    assert "0.750 px" in chart.svg
    made = report.make([bench, save(drift_result("ncnn-int8", 0.25), "drift")])
    (chart,) = [speed_charts.tradeoff(t, made.drift, report_charts.colours(made)) for t in made.targets]
    assert "Mean drift over 12 faces against onnx-fp32" in chart.caption
    assert "manifest" not in chart.caption
    assert "0.750 px" not in chart.svg
    assert "onnx-fp32 ×1: " in chart.svg


def test_the_slowest_samples_are_always_drawn():
    frames = np.random.default_rng(0).normal(20, 1, 5000)
    frames[[17, 3000]] = 90, 70
    drawn = speed_charts.chosen(frames)
    assert len(drawn) == speed_charts.DOTS
    assert set(np.sort(frames)[-speed_charts.EXTREMES :]) <= set(drawn)
    assert np.median(drawn) == pytest.approx(20, abs=0.5)
    few = frames[:100]
    assert speed_charts.chosen(few) is few


def test_the_shape_of_a_run_holds_no_sample_beyond_the_axis(run, result, save):
    """Clipped samples would pile up at its end."""
    samples = [10.0 + 0.01 * i for i in range(60)] + [500.0] * 9
    made = report.make([save(result([run(samples=samples)]))])
    (chart,) = [speed_charts.latency(target, report_charts.colours(made)) for target in made.targets]
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


def test_forty_runs_of_ten_thousand_samples_stay_below_two_megabytes(run):
    samples = np.random.default_rng(0).normal(20, 1, 10_000).round(4)
    states = tuple(State(0.25 * i, (1800, 2400), 60.0 + i % 7, 0, 0.1) for i in range(1200))
    runs = tuple(run(f"ncnn-{i}", samples=samples.tolist(), states=states) for i in range(40))
    assert len(report.html(Report("n", (), (), (Target("t", {}, runs, (), ()),), (), ()))) < 2_000_000


def test_axes_have_round_ticks():
    assert svg.Axis(0, 47, 0, 100).ticks(5) == [0, 10, 20, 30, 40]
    assert svg.Axis(0.3, 0.9, 0, 100).ticks(5) == pytest.approx([0.4, 0.6, 0.8])
    assert svg.Axis(0.001, 2, 0, 100, log=True).ticks(5) == pytest.approx([0.001, 0.01, 0.1, 1])
    assert svg.Axis(3, 40, 0, 100, log=True).ticks(5) == pytest.approx([5, 10, 20])
    assert svg.Axis(5, 5, 0, 100).ticks(5) == [5]
    axis = svg.Axis(1, 100, 0, 200, log=True)
    assert [axis(value) for value in (-1, 1, 10, 100, 1000)] == pytest.approx([0, 0, 100, 200, 200])


def test_labels_in_a_column_keep_their_order_and_distance():
    places = svg.spread([50, 51, 52, 90, 49.5], 10, 0, 100)
    assert np.diff(np.sort(places)).min() >= 10 - 1e-9
    assert np.argsort(places).tolist() == np.argsort([50, 51, 52, 90, 49.5]).tolist()
    assert places[3] == 90
    crowd = svg.spread([99.0] * 30, 10, 0, 100)
    assert 0 <= min(crowd) <= max(crowd) <= 100


def test_labels_beside_points_do_not_lie_over_each_other():
    chance = np.random.default_rng(3)
    points = [tuple(point) for point in chance.uniform(0, 1, (14, 2)) * (300, 200) + 40]
    points[:3] = [(100.0, 100.0), (101.0, 101.0), (102.0, 99.0)]
    drawn = "".join(svg.labels(points, [f"variant-{i}" for i in range(14)], (0, 0, 440, 280)))
    found = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', drawn)]
    assert len(found) == 14
    wide = svg.width("variant-1")
    for i, (x, y) in enumerate(found):
        for a, b in found[i + 1 :]:
            assert abs(x - a) >= wide - 1 or abs(y - b) >= 11
