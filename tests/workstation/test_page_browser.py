"""The live page in a real browser: the picture on it is the newest frame with its face, and it changes."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipnet_edge import draw
from pipnet_edge.converters import demo
from pipnet_edge.preprocess import read_picture
from pipnet_edge.video import page as pages
from pipnet_edge.video.page import Page
from pipnet_edge.video.source import Frame
from pipnet_edge.video.track import Tracked
from tests.device.video import moving
from tests.workstation.browser import Browser

# What the image on the page shows at this moment, as PNG in base64.
SHOWN = """(() => {
  const image = document.querySelector('img'), canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth, canvas.height = image.naturalHeight;
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL('image/png').split(',')[1];
})()"""


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield opened
    opened.close()


def shown(browser: Browser) -> NDArray[Any]:
    content = np.frombuffer(base64.b64decode(browser.evaluate(SHOWN)), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR)[:, :, ::-1]


def shows(picture: NDArray[Any], plain: NDArray[Any], drawn: NDArray[Any]) -> bool:
    """Whether a picture is `drawn` but for JPEG's noise, also where something was drawn."""
    if picture.shape != drawn.shape:
        return False
    off = np.abs(picture.astype(int) - drawn)
    return bool(off.mean() < 4 and off[(plain != drawn).any(axis=2)].mean() < 15)


def test_the_newest_frame_is_shown_and_changes(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each is shown when it comes, not when it is sent again.
    monkeypatch.setattr(pages, "AGAIN", 60.0)
    page = Page(port=0)
    faces = [read_picture(path) for path in sorted(demo.FACES.glob("*.jpg"))[:3]]
    pictures = [cv2.resize(face, (480, 360)) for face in faces]
    tracked = Tracked((moving.face(5, 240, 190, 200),), False)
    page.write(Frame(pictures[0], 0, 0), tracked, {})
    browser.open(page.url, (800, 600))
    for index in (0, 1, 2, 1):
        page.write(Frame(pictures[index], index, index), tracked, {})
        plain, end = pictures[index], time.monotonic() + 10
        drawn = draw.faces(plain, tracked.faces)
        assert not shows(draw.faces(pictures[(index + 1) % 3], tracked.faces), plain, drawn)
        assert not shows(plain, plain, drawn)
        while not shows(shown(browser), plain, drawn):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert browser.evaluate("document.querySelector('img').getBoundingClientRect().width") == 480
    assert browser.requests() == [page.url, f"{page.url}stream"]
    assert browser.complaints() == []
    # The page goes, and so does the browser's connection; its picture stays.
    page.close()
    assert shows(shown(browser), plain, drawn)
