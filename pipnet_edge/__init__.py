"""PIPNet facial landmarks on edge runtimes."""
