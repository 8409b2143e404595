"""The browser of the explorer's tests, and a page in it."""

from support.explorer_demo import address, reader
from support.explorer_reader import browser

__all__ = ["address", "browser", "reader"]
