"""The facts of each section."""
