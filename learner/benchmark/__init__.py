"""Grids of runs: data sets × label counts × methods × seeds, resumable, with a table and figures (ALGORITHMS.md 13)."""
