"""`intsr demo`."""
