"""The faults that real ports shipped, each a small change of a port that can be taken back."""
