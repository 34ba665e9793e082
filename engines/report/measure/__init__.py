"""What the page shows, measured."""
