"""Import of PassionSR's published checkpoints."""
