"""The report in a real browser: no console errors, no requests, no text over other text, on desktop and phone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipnet_edge.benchmarks import report
from pipnet_edge.benchmarks.speed.result import VERSION, Counted, Measured, Predicted, Result, Settings, State
from pipnet_edge.targets.emulated.instructions import Count
from tests.workstation.browser import Browser

HOSTILE = "<script>console.error(1)</script><img src='http://127.0.0.1:9/x.png'>\"'&"
DESKTOP, PHONE = (1200, 900), (375, 700)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, isolated: tuple[str, ...]) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile", isolated)
    yield opened
    opened.close()


def run(variant: str, threads: int, ms: float, failure: str | None = None) -> Measured:
    chance = random.Random(f"{variant} {threads}")
    inference = tuple(ms * (1 + abs(chance.gauss(0, 0.05))) for _ in range(300))
    samples = {"preprocess": (0.3,) * 300, "inference": (*inference[:-1], 9 * ms), "decode": (0.15,) * 300}
    states = tuple(State(0.25 * i, (1800 - 400 * (i > 5), 2400), 60.0 + i, 8 * (i > 5), 0.5) for i in range(12))
    arithmetic = variant.partition("-")[2]
    told = ("ncnn 1.0", (0, 1), 40.0, 2 * ms, 97_000_000)
    return Measured("rpi4", variant, arithmetic, 16_900_000, threads, 0.117, *told, samples, states, failure)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all there can be in one, and with markup wherever a result has text."""
    variants = [f"{name}-{precision}" for name in ("onnx", "ncnn", "mnn", "tflite") for precision in ("fp32", "int8")]
    runs = [run(name, n, (20 + i) / n**0.8) for i, name in enumerate(variants) for n in (1, 2, 4)]
    parts = {name: Count(300_000_000, 150_000_000, 90_000_000) for name in ("preprocess", "inference", "decode")}
    result = Result(
        version=VERSION,
        tool=HOSTILE,
        created="2026-11-22T20:31:05+00:00",
        network=f"mobilenet_v2 {HOSTILE}",
        bundle="ed070ab8e10f",
        settings=Settings(),
        facts={"rpi4": {"board": "Raspberry Pi 4", "cores": "4", HOSTILE: HOSTILE}, "rpi5": {"soc": "BCM2712"}},
        measured=(*runs, run(HOSTILE, 1, 30, HOSTILE)),
        counted=tuple(Counted("rpi4", name, 1, "cortex-a72", HOSTILE, 4, 0.1, 1, parts, None) for name in variants),
        predicted=tuple(
            Predicted("rpi5", name, 1, 4, 20.0, 15.0, 31.0, HOSTILE, HOSTILE, 21.0, HOSTILE) for name in variants
        ),
    )
    summary = {
        "images": 25,
        "drift": {"px_mean": {"value": 0.11, "low": 0.1, "high": 0.12}, "nme": {"value": 0.01}},
        "landmarks": [{"px_mean": 0.05 * i, "px_p95": 0.1 * i, "flips": 0.0} for i in range(5)],
    }
    face = [[0.1, 0.1], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.8, 0.8]]
    drift = {
        "reference": HOSTILE,
        "notes": [HOSTILE],
        "rows": [
            *({"variant": name, "summary": summary, "mean_face": face} for name in (*variants, HOSTILE)),
            {"variant": "x", "failure": HOSTILE},
        ],
    }
    parity = {"rows": [{"variant": HOSTILE, "reference": "torch", "images": 4, "landmarks": 5, "failure": HOSTILE}]}
    folder = tmp_path_factory.mktemp("report")
    paths = []
    for command, content in (("bench", result.to_json()), ("drift", drift), ("parity", parity)):
        paths.append(folder / f"{command}.json")
        envelope = {"schema": "pipnet-edge/1", "command": command, "ok": True, "result": content}
        paths[-1].write_text(json.dumps(envelope))
    report.write(report.make(paths), folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_complaints_and_without_requests(browser, page, size, scheme):
    browser.open(page.as_uri(), size, scheme)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 7 + 9 + 2
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, a, link').length") == 0
    # The page itself never scrolls sideways, its wide tables do.
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


# Pairs of texts of one drawing that lie over each other by more than a hair, and texts that leave their drawing.
CROWDED = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [name, box] of texts)
      if (box.left < frame.left - 2 || box.right > frame.right + 2) found.push(`${svg.ariaLabel}: ${name} sticks out`);
    texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 4) found.push(`${svg.ariaLabel}: ${a} over ${b}`);
    }));
  }
  return found;
})()"""


def test_no_text_lies_over_another(browser, page):
    browser.open(page.as_uri(), DESKTOP)
    assert browser.evaluate(CROWDED) == []


# --- The tests' own eyes.


@pytest.mark.parametrize(
    "flaw",
    [
        "<script>console.error('x')</script>",
        "<script>nobody()</script>",
        "<img src='nothing.png'>",
        "<img src='http://127.0.0.1:9/x.png'>",
    ],
)
def test_a_flawed_page_is_seen(browser, tmp_path, flaw):
    path = tmp_path / "flawed.html"
    path.write_text(f"<!doctype html><title>x</title>{flaw}")
    browser.open(path.as_uri(), DESKTOP)
    assert browser.complaints() != []
    assert (len(browser.requests()) > 1) == ("img" in flaw)


def test_the_page_lets_nothing_in(browser, page, tmp_path):
    """Even if text were not escaped: the policy forbids scripts, pictures and other styles."""
    flawed = tmp_path / "flawed.html"
    markup = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png'><style>h1 {top: 3px}</style>"
    flawed.write_text(page.read_text().replace("</main>", f"{markup}</main>"))
    browser.open(flawed.as_uri(), DESKTOP)
    assert browser.evaluate("document.title").startswith("PIPNet")
    assert browser.evaluate("getComputedStyle(document.querySelector('h1')).top") == "auto"
    assert len(browser.complaints()) >= 3


def test_crowded_text_is_seen(browser, tmp_path):
    path = tmp_path / "crowded.html"
    texts = "<text x='10' y='20'>first</text><text x='12' y='22'>second</text><text x='95' y='60'>outside</text>"
    path.write_text(f"<!doctype html><svg viewBox='0 0 100 80' width='100' aria-label='s'>{texts}</svg>")
    browser.open(path.as_uri(), DESKTOP)
    assert browser.evaluate(CROWDED) == ["s: outside sticks out", "s: first over second"]
