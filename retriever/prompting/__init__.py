"""From demonstrations to a prompt."""
