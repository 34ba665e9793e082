"""The mathematics: what one step makes constant, LET and integers into weights, and their torch reference."""
