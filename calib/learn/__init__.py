"""The machinery that every trained method shares."""
