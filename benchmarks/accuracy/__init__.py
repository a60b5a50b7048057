"""What a variant lost: parity with the float network, drift over faces, and the labels to judge by."""
