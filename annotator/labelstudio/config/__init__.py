"""Labeling configurations and what people say with them."""
