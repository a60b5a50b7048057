"""Variants for ncnn, and its files."""
