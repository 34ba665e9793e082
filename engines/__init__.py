"""Build engines for each target, inspect and verify them."""
