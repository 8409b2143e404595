"""Notebook 12: the paper's protocol of fact tracing, with its settings and with ours."""
