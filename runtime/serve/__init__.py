"""Engines behind Triton Inference Server: the repository that it reads, and the model that it calls."""
