"""Measuring: parity, drift, speed. Never imports torch: the reference travels in the bundle."""
