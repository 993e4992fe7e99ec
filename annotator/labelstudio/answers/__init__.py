"""Answers: in from Label Studio, out from our page, and what happens where both sides changed one."""
