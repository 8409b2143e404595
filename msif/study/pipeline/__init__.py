"""Runs, renders and indexes the notebooks. No other package imports it."""
