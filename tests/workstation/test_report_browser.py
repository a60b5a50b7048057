"""The report in a real browser: no console errors, no requests, no text over other text, on desktop and phone."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipnet_edge.benchmarks.report import write
from pipnet_edge.benchmarks.speed.result import VERSION, Counted, Measured, Predicted, Result, Settings, State
from pipnet_edge.targets.emulated.instructions import Count

HOSTILE = "<script>console.error(1)</script><img src='http://127.0.0.1:9/x.png'>\"'&"
QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
DESKTOP, PHONE = (1200, 900), (375, 700)


class Browser:
    """A headless Chromium with one page, without a network, spoken to in the DevTools protocol over pipes."""

    def __init__(self, prefix: tuple[str, ...], program: str, profile: Path) -> None:
        there, self._requests = os.pipe()
        self._answers, back = os.pipe()
        options = f"--headless --no-sandbox --disable-gpu {QUIET} --remote-debugging-pipe --user-data-dir={profile}"
        # The protocol's pipes have to be descriptors 3 and 4.
        command = f'exec 3<&{there} 4>&{back}; exec {" ".join(prefix)} "{program}" {options} about:blank'
        log = (profile.parent / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(there, back), stdout=log, stderr=subprocess.STDOUT
        )
        os.close(there)
        os.close(back)
        log.close()
        self._numbers, self._rest, self.events = itertools.count(1), b"", list[dict[str, Any]]()
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, size: tuple[int, int], scheme: str = "light") -> None:
        """Loads a page and waits for all that it loads; events are those since."""
        wide, high = size
        metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def complaints(self) -> list[str]:
        """What the page wrote to the console or threw, and what the browser had to say of it."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in names]

    def requests(self, page: Path) -> list[str]:
        """The addresses that were asked for, but for the page itself."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if each["request"]["url"] != page.as_uri()]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._requests)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, isolated: tuple[str, ...]) -> Iterator[Browser]:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has to provide Chromium")
        pytest.skip("needs Chromium")
    opened = Browser(isolated, found[0], tmp_path_factory.mktemp("browser") / "profile")
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
    write.write(write.make(paths), folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_complaints_and_without_requests(browser, page, size, scheme):
    browser.open(page, size, scheme)
    assert browser.complaints() == []
    assert browser.requests(page) == []
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
    browser.open(page, DESKTOP)
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
    browser.open(path, DESKTOP)
    assert browser.complaints() != []
    assert bool(browser.requests(path)) == ("img" in flaw)


def test_the_page_lets_nothing_in(browser, page, tmp_path):
    """Even if text were not escaped: the policy forbids scripts, pictures and other styles."""
    flawed = tmp_path / "flawed.html"
    markup = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png'><style>h1 {top: 3px}</style>"
    flawed.write_text(page.read_text().replace("</main>", f"{markup}</main>"))
    browser.open(flawed, DESKTOP)
    assert browser.evaluate("document.title").startswith("PIPNet")
    assert browser.evaluate("getComputedStyle(document.querySelector('h1')).top") == "auto"
    assert len(browser.complaints()) >= 3


def test_crowded_text_is_seen(browser, tmp_path):
    path = tmp_path / "crowded.html"
    texts = "<text x='10' y='20'>first</text><text x='12' y='22'>second</text><text x='95' y='60'>outside</text>"
    path.write_text(f"<!doctype html><svg viewBox='0 0 100 80' width='100' aria-label='s'>{texts}</svg>")
    browser.open(path, DESKTOP)
    assert browser.evaluate(CROWDED) == ["s: outside sticks out", "s: first over second"]
