"""Tasks: which faces are asked there, with which predictions, and for how long."""
