"""Find, open, describe and digest a model."""
