"""Pairs of models, trained here or elsewhere, with their corpus; and trained without documents."""
