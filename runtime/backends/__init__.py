"""One file or folder a library that runs networks."""
