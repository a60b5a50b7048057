"""This machine: a worker in a child process."""

from __future__ import annotations

import sys

from pipnet_edge.worker import call as channel


def call(job: channel.Job, listen: channel.Listen = channel.ignore) -> channel.Event:
    """A channel.Call to a worker on this machine, in the Python that runs this."""
    return channel.converse([sys.executable, "-P", "-m", "pipnet_edge.worker"], job, listen)
