"""Notebook 06: do the scores predict what retraining both stages does?"""
