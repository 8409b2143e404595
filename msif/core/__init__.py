"""The engine: data, models and their layers, gradients, EK-FAC, and the multi-stage score."""
