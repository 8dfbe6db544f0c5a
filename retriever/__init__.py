"""From a pool of worked examples to a prompt."""
