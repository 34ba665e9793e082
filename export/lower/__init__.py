"""A folded network to ONNX nodes, in the form that a target wants."""
