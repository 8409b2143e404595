"""Preferences: a prompt with an answer that was chosen and one that was rejected.

To the engine a pair is one sample, whose positions are those of both rows: what it gives to
curvature, gradients and scores is summed over the two before anything is squared.
"""

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard, cast

from torch import Tensor

from msif.core import data


@dataclass(frozen=True)
class Pair:
    """One preference: two rows, `data.Sequence`, of one prompt.

    index: its number in its data set. chosen, rejected: with a loss on the answer's tokens, which
    are those that log π(y|x) is of. Raises ValueError for what are no rows.
    """

    index: int
    chosen: data.Sequence
    rejected: data.Sequence

    def __post_init__(self):
        for name in ("chosen", "rejected"):
            row = getattr(self, name)
            if not isinstance(row, data.Sequence) or isinstance(row.labels, int):
                raise ValueError(
                    f"pair {self.index}: {name} is a {type(row).__name__}; expected a "
                    f"data.Sequence of a language model, as `encode_answers` makes it"
                )


# What a stage is trained on, and what is scored: all of one kind.
Items = Sequence[data.Sequence | Pair]


def paired(chosen: Sequence[data.Sequence], rejected: Sequence[data.Sequence]) -> list[Pair]:
    """Pairs of rows in the same order, numbered as the chosen ones; ValueError for other counts."""
    if len(chosen) != len(rejected):
        raise ValueError(
            f"{len(chosen)} chosen and {len(rejected)} rejected answers: expected as many"
        )
    return [Pair(x.index, x, y) for x, y in zip(chosen, rejected)]


def are_pairs(items: object) -> TypeGuard[list[Pair]]:
    """Is the first of these a pair?"""
    return isinstance(items, list | tuple) and bool(items) and isinstance(items[0], Pair)


def rows_of(pairs: Sequence[Pair]) -> list[data.Sequence]:
    """The rows of all pairs, each with its pair's index: the chosen ones, then the rejected."""
    sides = zip(*((x.chosen, x.rejected) for x in pairs))
    return [replace(row, index=x.index) for side in sides for x, row in zip(pairs, side)]


def check(items: Items, vocab_size: float, context: float, classes: float = math.inf) -> None:
    """`data.check`, of pairs for the rows of either side. Raises ValueError as that does, and for
    a sequence among pairs."""
    if not are_pairs(items):
        return data.check(cast(list[data.Sequence], items), vocab_size, context, classes)
    if odd := next((x for x in items if not isinstance(x, Pair)), None):
        raise ValueError(f"{reprlib.repr(odd)} stands among pairs; expected pairs alone")
    rows = rows_of(items)
    for side in (rows[: len(items)], rows[len(items) :]):
        data.check(side, vocab_size, context)


def digest(pairs: Iterable[Pair]) -> str:
    """sha256 (hex) of indices, ids and labels, order included."""
    return data.digest(row for x in pairs for row in rows_of([x]))


def beside(x: Tensor) -> Tensor:
    """What belongs to 2n rows, as `rows_of` orders them, by pair: (2n, s, …) -> (n, 2s, …)."""
    return x.unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2)
