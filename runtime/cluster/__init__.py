"""The jobs of a batch on the workers of a Ray cluster."""
