"""One file a model family: what is particular to its networks."""
