"""Adapters from a prompt to an answer, one file each."""
