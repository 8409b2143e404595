"""Notebook 10: what the model still says without the documents that a method names."""
