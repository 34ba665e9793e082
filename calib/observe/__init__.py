"""Full-precision runs under observers, and what is read off them."""
