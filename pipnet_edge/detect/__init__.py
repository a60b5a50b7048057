"""Faces in a picture: boxes that say where to cut the crops for landmarks."""
