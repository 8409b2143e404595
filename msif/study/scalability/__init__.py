"""Notebook 05: how near to exact, at what cost, against the methods in use?"""
