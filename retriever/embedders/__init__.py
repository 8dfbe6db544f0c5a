"""Text to unit vectors, one file per family."""
