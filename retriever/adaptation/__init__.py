"""Adaptation: a map over frozen embeddings, learned from what the pool says is alike."""
