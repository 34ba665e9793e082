"""One layer, one norm, one quantizer as ONNX nodes."""
