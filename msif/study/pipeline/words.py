"""How findings, and differences between methods, are told on pages that people read."""

from math import isnan
from typing import NamedTuple


class Finding(NamedTuple):
    """A key number, what it counts, and the claim that it carries."""

    number: str
    what: str
    claim: str


def against(lead, error, rival, interval=None):
    """How a difference with its standard error reads. interval: its 95 % (low, high), which decides
    where it is given; else two standard errors do, and of an unknown error nothing is said."""
    if isnan(error):
        return f"beside {rival} {lead:+.3f}, of one question"
    low, high = interval or (lead - 2 * error, lead + 2 * error)
    if low <= 0 <= high:
        return f"level with {rival} ({lead:+.3f} ± {error:.3f})"
    place = "ahead of" if lead > 0 else "behind"
    return f"{place} {rival} by {abs(lead):.3f} ± {error:.3f}"


def above(value, other):
    """How a value reads beside another: "above", "equal to" or "below"."""
    if value > other:
        return "above"
    return "equal to" if value == other else "below"
