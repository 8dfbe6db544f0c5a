"""The hybrid index: arrays in, row numbers and scores out."""
