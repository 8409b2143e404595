"""Notebook 04: how near does each approximation come to exact influence? With the oracle that
judges."""
