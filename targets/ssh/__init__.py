"""Boards over the user's own ssh."""
