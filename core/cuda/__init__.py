"""The one place that talks to CUDA."""
