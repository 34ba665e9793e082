"""What travels beside the pixels, free of formats."""
