"""Results of bench, parity and drift as one file to hand on."""

from __future__ import annotations

from pipnet_edge.benchmarks.report.contents import Report, make
from pipnet_edge.benchmarks.report.formats import csv, html, markdown, write

__all__ = ["Report", "csv", "html", "make", "markdown", "write"]
