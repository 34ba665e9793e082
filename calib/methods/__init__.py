"""One file a quantization method."""
