"""Notebook 07: what stands behind single answers, and what does the model say without it?"""
