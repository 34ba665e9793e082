"""Templates' filters, and what is embedded."""
