"""What Jupyter does in the study's environment, into which the Makefile links this file."""

from msif.study.pipeline.sources import before_save

c.ContentsManager.pre_save_hook = before_save  # noqa: F821  Jupyter defines c
