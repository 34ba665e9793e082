"""One function an ATen operation, by subject; importing the modules registers them."""
