"""From a float network and faces to weights on int8 grids and ranges of activations."""
