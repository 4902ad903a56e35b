"""One transformer, the switches that tell checkpoints apart, and how they are loaded."""
