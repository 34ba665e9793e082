"""Specialize, fold and lower models to QDQ ONNX."""
