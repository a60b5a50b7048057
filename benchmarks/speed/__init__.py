"""How fast a variant is: measured, counted or predicted, kept as raw samples, and tuned for a machine."""
