"""Pre-training on unlabeled faces."""
