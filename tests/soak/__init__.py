"""Soak tests: what the other tests try a few times, thousands of times. `scripts/soak` runs them."""
