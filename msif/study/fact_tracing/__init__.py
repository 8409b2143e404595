"""Notebook 03: which documents made it say so, beside every rival under every condition?"""
