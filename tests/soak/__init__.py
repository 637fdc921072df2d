"""What only shows after a long time: leaks, and faults that need to meet. Run by `make soak`, not by pytest."""
