"""The commands of this stage, one a module."""
