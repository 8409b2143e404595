"""Notebook 9: a model fine-tuned in all its weights, by adapters (LoRA), and by preferences too."""
