"""The page: templates and their filters, and what is embedded."""
