"""Methods and bits side by side."""
