"""What one step makes constant in a video transformer, and its causal VAE in chunks of frames."""
