"""Semi-supervised learning of facial expressions: pure PyTorch on rows, images and answers."""
