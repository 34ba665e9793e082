"""`intsr compile`, from the request to a verified file."""
