"""The browser of the explorer's tests."""

from support.explorer_reader import browser

__all__ = ["browser"]
