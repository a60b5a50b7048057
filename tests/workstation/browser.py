"""Chromium, as tests of pages use it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
# Nothing is looked up, and nobody reached but this machine.
QUIET += " --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'"


def _chromium() -> str:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has to provide Chromium")
        pytest.skip("needs Chromium")
    return found[0]


class Browser:
    """A headless Chromium with one page, spoken to in the DevTools protocol over pipes. prefix: of its command.

    It asks no name server for anything.
    """

    def __init__(self, profile: Path, prefix: tuple[str, ...] = ()) -> None:
        there, self._requests = os.pipe()
        self._answers, back = os.pipe()
        options = f"--headless --no-sandbox --disable-gpu {QUIET} --remote-debugging-pipe --user-data-dir={profile}"
        # The protocol's pipes have to be descriptors 3 and 4.
        command = f'exec 3<&{there} 4>&{back}; exec {" ".join(prefix)} "{_chromium()}" {options} about:blank'
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

    def open(self, address: str, size: tuple[int, int], scheme: str = "light") -> None:
        """Loads a page and waits for all that it loads; events are those since."""
        wide, high = size
        metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def complaints(self) -> list[str]:
        """What the page wrote to the console or threw, and what the browser had to say of it."""
        names = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in names]

    def requests(self) -> list[str]:
        """The addresses that were asked for, the page's own among them."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

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
