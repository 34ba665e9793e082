"""Many files: which become which, in what memory, in what order."""
