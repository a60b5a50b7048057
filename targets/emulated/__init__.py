"""A device's instruction set under qemu, on this machine."""
