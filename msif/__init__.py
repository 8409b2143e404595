"""Multi-stage influence functions with EK-FAC: which pre-training documents made a fine-tuned model say so?

One flat module per concept, each imported by name (`from msif.core.ekfac import ...`); importing the package loads
none of them.
"""
