"""The accuracy of a variant: parity with the float network, drift over faces, and labels to measure with."""
