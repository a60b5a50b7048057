"""Faces that move: from one picture to the next without looking for them again."""
