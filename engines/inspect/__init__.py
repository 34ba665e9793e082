"""What is in a file, as plain data."""
