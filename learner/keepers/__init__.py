"""Bookkeeping across steps: prototypes, doubts about labels, complementary labels."""
