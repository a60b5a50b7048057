"""Reports: what they are made of, their tables and numbers, and how they are written."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from pipnet_edge.benchmarks import report
from pipnet_edge.benchmarks.report import tables as report_tables
from pipnet_edge.errors import EdgeError


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


# --- Reading.


def test_all_three_results_in_one_report(run, counted, predicted, result, drift_result, parity_result, save):
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


def test_the_same_target_twice_is_told_apart_by_its_file(run, result, save):
    first, second = save(result([run()]), name="monday"), save(result([run()]), name="tuesday")
    other = save(result([run(target="rpi5")], facts={"rpi5": {}}), name="rest")
    made = report.make([first, second, first, other])
    assert [target.name for target in made.targets] == ["rpi4 (monday)", "rpi4 (tuesday)", "rpi5"]


def test_what_is_no_result_is_refused(run, result, drift_result, save, tmp_path):
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


def test_a_mean_face_has_as_many_points_as_there_are_landmarks(drift_result, save):
    broken = drift_result()
    broken["rows"][0]["mean_face"] = [[0.1, 0.2]]
    with pytest.raises(EdgeError, match="1 points and 3 landmarks"):
        report.make([save(broken, "drift")])


# --- Numbers.


def test_statistics_use_every_sample(run, result, save):
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


def test_speed_up_is_over_fp32_of_the_same_runtime_and_threads(run, result, save):
    runs = [run("ncnn-fp32", 1, [29.4] * 5), run("ncnn-fp32", 2, [19.4] * 5), run("mnn-int8", 1, [1.4] * 5)]
    runs += [run("ncnn-int8", 1, [9.4] * 5), run("ncnn-int8", 4, [4.4] * 5)]
    found = [row["speedup_over_fp32"] for row in rows_of(report.csv(report.make([save(result(runs))])))]
    assert found == ["", "", "", "3.0", ""]


def test_warnings_and_failures_are_told(run, result, save):
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


def test_kinds_share_no_column_of_numbers(run, counted, predicted, result, save):
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


def test_counts_and_predictions(counted, predicted, result, save):
    made = report.make([save(result((), [counted()], [predicted()]))])
    emulated, guess = rows_of(report.csv(made))
    assert [emulated[name] for name in ("instructions", "simd", "memory")] == ["302000000", "150000000", "90000000"]
    assert [guess[f"predicted_{name}ms"] for name in ("", "low_", "high_")] == ["51.5", "40.25", "70.75"]
    for text in (report.html(made), report.markdown(made)):
        for cell in ("302.0", "51.5", "40.2 – 70.8", "54.1", "near it: 62 ms", "a page", "a guess"):
            assert cell in text


def test_parity_under_emulation_is_no_measurement(parity_result, save):
    there = save(parity_result() | {"target": "rpi4", "kind": "emulated"}, "parity")
    made = report.make([there, save(parity_result(), "parity", "here")])
    first, second = report_tables.sections(made)
    assert (first.name, first.kind) == ("Parity (rpi4)", "emulated")
    assert (second.name, second.kind) == ("Parity (here.json)", "measured")
    assert [row["kind"] for row in rows_of(report.csv(made))] == ["parity emulated"] * 3 + ["parity measured"] * 3
    with pytest.raises(EdgeError, match="'predicted'; parity is measured or emulated"):
        report.make([save(parity_result() | {"kind": "predicted"}, "parity")])


# --- Writing.


def test_the_suffix_says_what_is_written(run, result, save, tmp_path):
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


def test_title_with_network_and_date(run, result, save):
    first, last = result([run()]), result([run()], created="2026-11-24T01:00:00+00:00")
    made = report.make([save(first, name="a"), save(last, name="b")])
    title = "PIPNet mobilenet_v2, 68 landmarks, 2026-11-22 – 2026-11-24"
    assert f"<title>{title}</title>" in report.html(made)
    assert report.markdown(made).startswith(f"# {title}\n")
    assert "a: 2026-11-22 20:31 UTC, pipnet-edge 0.1.0, bundle ed070ab8e10f" in report.markdown(made)
