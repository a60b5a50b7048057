"""Reads a network from a file, and describes it."""
