"""Fixtures of the study's slow tests."""

from support.checkouts import checkout
from support.explorer_reader import browser

__all__ = ["browser", "checkout"]
