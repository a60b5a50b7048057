"""Drawings of what was measured: one file per kind."""
