"""The artefact that calibrating makes, and its files."""
