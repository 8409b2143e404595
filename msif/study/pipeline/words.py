"""How findings, and differences between methods, are told on pages that people read."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A key number, what it counts, and the claim that it carries."""

    number: str
    what: str
    claim: str


def against(lead, error, rival):
    """How a difference with its standard error reads."""
    if abs(lead) <= 2 * error:
        return f"level with {rival} ({lead:+.3f} ± {error:.3f})"
    place = "ahead of" if lead > 0 else "behind"
    return f"{place} {rival} by {abs(lead):.3f} ± {error:.3f}"


def above(value, other):
    """How a value reads beside another: "above", "equal to" or "below"."""
    if value > other:
        return "above"
    return "equal to" if value == other else "below"
