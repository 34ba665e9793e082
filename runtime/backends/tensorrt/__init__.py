"""Both TensorRT targets, and their way for pictures on the GPU."""
