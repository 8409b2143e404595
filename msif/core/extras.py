"""Packages that the study needs and the library does not."""

import importlib
from types import ModuleType


def need(module: str) -> ModuleType:
    """Import and return `module` (a dotted name).

    Raises ImportError, naming the extra to install, when it is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = 'install it with: pip install ".[study]" in the study'
        raise ImportError(f"{module} cannot be imported ({error}); {hint}") from error
