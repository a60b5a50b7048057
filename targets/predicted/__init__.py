"""Times that a model predicts from published ones."""
