"""The engine: data, models and their layers, gradients, EK-FAC factors, and the multi-stage score.

Needs torch alone.
"""
