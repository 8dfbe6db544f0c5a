"""The ranker: one file per stage."""
