"""Load models and learn quantizers."""
