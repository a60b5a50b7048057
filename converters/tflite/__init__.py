"""Variants for TFLite, and its files."""
