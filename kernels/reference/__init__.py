"""The kernels' operations in NumPy."""
