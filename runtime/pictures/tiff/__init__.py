"""What a TIFF is: which directory is the picture, and what its pixels are."""
