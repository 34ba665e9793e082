"""Nodes of our own, and where they fit."""
