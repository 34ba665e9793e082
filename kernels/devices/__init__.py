"""Who carries launches out: a GPU, or the emulation on the CPU."""
