"""Kernels on no product path, for measurements on the first GPU: int8 products, and GroupNorm on NHWC as codes.

They become layers of a target of our own where they win against TensorRT's. `int8_matmul.cu` also has what
`selfcheck` measures the GPU's peaks with.
"""
