"""How much of a model its tracked layers are: everything else counts as fixed in every score."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

from msif.core.layers import Tracked
from msif.core.parts import matrices

SHOWN = 6  # names of what is left out


@dataclass(frozen=True)
class Coverage:
    """Numbers in the matrices between embeddings and head, of what reads text.

    tracked: how many of them are tracked, of `whole`. left_out: {name: numbers} of the others, the
    most first; blocks and experts that are left out alike share a name with N for their number.
    """

    tracked: int
    whole: int
    left_out: dict[str, int]

    @property
    def share(self) -> float:
        """Of the numbers, how many are tracked: 0 to 1."""
        return self.tracked / self.whole if self.whole else 1.0

    def __str__(self) -> str:
        share = _percent(self.share)
        said = f"tracked: {share} of the {self.whole:,} numbers in the model's blocks"
        if not self.left_out:
            return said
        shown = [f"{x} ({_percent(n / self.whole)})" for x, n in self.left_out.items()]
        more = ", …" * (len(shown) > SHOWN)
        return f"{said}; left out, and fixed in every score: {', '.join(shown[:SHOWN])}{more}"

    def header(self) -> dict[str, Any]:
        """As headers of factors hold it."""
        return {"tracked": self.tracked, "of": self.whole, "left_out": list(self.left_out)}


def coverage(tracked: Tracked) -> Coverage:
    """The `Coverage` of a model's tracked layers."""
    mine_of: dict[str, int] = {}
    for x in tracked.layers:
        name, size = x.name, x.in_features * x.out_features
        if x.expert is not None:  # without its bias
            name, weight = x.parameter, tracked.model.get_parameter(x.parameter)
            size = weight[0].numel()
        mine_of[name] = mine_of.get(name, 0) + size
    found, whole, left_out = 0, 0, dict[str, int]()
    for name, size in matrices(tracked.model):
        mine = min(size, mine_of.get(name, 0))
        found, whole = found + mine, whole + size
        if size > mine:
            alike = re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)
            left_out[alike] = left_out.get(alike, 0) + size - mine
    ordered = sorted(left_out.items(), key=lambda x: -x[1])
    return Coverage(found, whole, dict(ordered))


def say_coverage(tracked: Tracked, title: str | None) -> None:
    """Print the share that is tracked, under a title; without one, warn where it is not all."""
    found = coverage(tracked)
    if title:
        print(f"{title}: {found}", flush=True)
    elif found.left_out:
        warnings.warn(str(found), stacklevel=3)


def _percent(share):
    """Never rounded up to all of it."""
    return f"{int(1000 * share) / 10:g} %"
