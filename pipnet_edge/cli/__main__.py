"""Starts the command line, as `pipnet-edge` and as `python -m pipnet_edge.cli`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    # Ctrl-C ends this at once and without a word until a command runs, which then cleans up.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # OpenCV would write its own lines beside ours for a damaged picture, and FFmpeg for each frame of a poor stream.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from pipnet_edge.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
