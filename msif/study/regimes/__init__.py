"""Notebook 11: when can a score predict retraining?"""
