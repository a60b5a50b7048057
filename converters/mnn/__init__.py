"""Variants for MNN, and its files."""
