"""Measurements behind the design, run from a clone. They may import anything, and nobody imports them."""
