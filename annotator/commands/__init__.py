"""The commands of `annotator`, one file per concern.

Heavy imports stay inside the functions: `annotator status` must not load torch.
"""
