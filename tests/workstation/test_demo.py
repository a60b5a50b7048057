"""`pipnet-edge demo`, whole."""

from __future__ import annotations

import cv2

from pipnet_edge import bundle as bundles


def test_the_demo_makes_a_bundle_a_table_and_a_picture(cli, isolated, demo_bundle, tmp_path):
    """demo_bundle: after it the rounded weights are cached. A folder that is already there keeps what is in it."""
    (tmp_path / "out" / "cache").mkdir(parents=True)
    (tmp_path / "out" / "cache" / "mine.txt").write_text("kept")
    done = cli("demo", "-o", tmp_path / "out", prefix=isolated)
    assert done.returncode == 0, done.stderr
    variants = [variant.name for variant in bundles.read(tmp_path / "out" / "bundle").variants]
    assert len(variants) == 11
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()}
    for name in variants:
        assert float(rows[name][-1]) > 0
    assert cv2.imread(str(tmp_path / "out" / "faces.png")).std() > 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle", "cache", "faces.png"]
    assert (tmp_path / "out" / "cache" / "mine.txt").read_text() == "kept"
