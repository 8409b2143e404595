"""Notebook 08: a pair of one's own."""
