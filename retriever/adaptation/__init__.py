"""Adaptation: what a pool or a log says is alike, learned as a map of frozen embeddings or in the model itself."""
