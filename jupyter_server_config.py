"""What Jupyter does in the study's environment, into which the Makefile links this file."""

import warnings

from msif.study.pipeline.sources import before_save

c.ContentsManager.pre_save_hook = before_save  # noqa: F821  Jupyter defines c
# Jupyter reads its configuration twice, and warns that the second hook replaces the first.
warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")
