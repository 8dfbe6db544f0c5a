"""How good a selection is: metrics, and what is calibrated with them."""
