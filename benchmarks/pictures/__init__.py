"""What was measured, as pictures: one file a kind."""
