"""Quantizer arithmetic as reference operations, and the kernels that must agree with them."""
