"""Reading images and whole slides."""
