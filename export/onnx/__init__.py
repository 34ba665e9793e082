"""The ONNX file itself: builder and reader; knows nothing of torch."""
