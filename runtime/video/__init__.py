"""Films through networks that see several frames at once."""
