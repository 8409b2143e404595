"""Short pieces of the data, on which a model is tried before it is believed.

A piece begins and ends as a sequence of the data does. Between, it has the words that are rarest in
the data: what few words switch on is seen there, or nowhere.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from torch import nn

from msif.core.data import Sequence
from msif.core.models import text_config

ROWS = 4  # pieces that are compared
LENGTH = 12  # tokens that they are cut to
WORDS = 64  # tokens of a piece that is made of words alone
TOKENS_PER_PIECE = 2**15  # of the data, for each of those: what it costs stays below 0.3 %
_SPECIAL = re.compile(r"_token_(ids?|index)$").search


class Pieces:
    """What a set of sequences gives to try.

    rows: `ROWS` pieces, the shortest first, of different lengths where the data allows; the first
    has two tokens, and so hardly anything that the others could switch on. longest: the longest
    sequence, whole. long: that one, unless it is as short as a piece.
    """

    def __init__(self, model: nn.Module, sequences: list[Sequence]):
        order = sorted(sequences, key=lambda x: len(x.input_ids))
        self.longest = order[-1]
        self.long = [self.longest] if len(self.longest.input_ids) > LENGTH else []
        self._count = sum(len(x.input_ids) for x in sequences) // TOKENS_PER_PIECE
        self._words = _rarest(model, sequences, ROWS * LENGTH + WORDS * self._count)
        most, last = min(LENGTH, len(self.longest.input_ids)), len(order) - 1
        step = max(1, most // (ROWS + 1))
        lengths = [most - k * step for k in range(ROWS - 1)] + [2]
        picked = [order[round(k * last / (ROWS - 1))] for k in reversed(range(ROWS))]
        # The longest first: the rarest words are for it, whose gradients are compared.
        self.rows = [self._cut(x, max(1, n)) for x, n in zip(picked, lengths)][::-1]

    def of_words(self) -> Iterator[Sequence]:
        """Pieces of the rarest words that `rows` do not have: as many as the data pays for."""
        first, *_, last = self.longest.input_ids
        length = min(WORDS, len(self.longest.input_ids)) - 2
        for _ in range(self._count if length > 0 else 0):
            if words := self._pop(length):
                yield _labelled(self.longest, (first, *words, last))

    def _cut(self, x, length):
        """A sequence of at most so many tokens, a label on each, that begins and ends as it did."""
        ids = x.input_ids
        if len(ids) > length:
            rare = self._pop(length - length // 2 - 1)
            ids = (*ids[: length - 1 - len(rare)], *rare, ids[-1])
        return _labelled(x, ids)

    def _pop(self, count):
        """The rarest words that are left, each once."""
        return [self._words.pop() for _ in range(min(count, len(self._words)))]


def equally_long(rows: list[Sequence]) -> list[Sequence]:
    """Cut to the shortest; each ends as it did."""
    shortest = min(len(x.input_ids) for x in rows)
    return [_labelled(x, (*x.input_ids[: shortest - 1], x.input_ids[-1])) for x in rows]


def lengthened(rows: list[Sequence]) -> list[Sequence]:
    """As long as the longest, by repeating what they have: no token that matters is cut off."""
    longest = max(len(x.input_ids) for x in rows)
    return [
        _labelled(x, (*(x.input_ids * longest)[: longest - 1], x.input_ids[-1]))
        if len(x.input_ids) < longest
        else x
        for x in rows
    ]


def pair(rows: list[Sequence], batches: str) -> list[Sequence]:
    """Two that may share a batch, the first again at the end: no order of theirs is that of a model
    that sorts them. Never as many as they have tokens."""
    if batches == "single":
        return rows[-1:]
    rows = rows if batches == "any" else equally_long(rows)
    found = [rows[0], rows[-1], rows[0]]
    return found if len(rows[-1].input_ids) != 3 else [*found, rows[-1]]


def other_end(x: Sequence) -> Sequence:
    """The sequence with another last token, one that it has, or one that is near."""
    *start, last = x.input_ids
    others = [token for token in start if token != last]
    return replace(x, input_ids=(*start, others[0] if others else last - 1 if last else 1))


def _labelled(x, ids):
    return replace(x, input_ids=ids, labels=x.labels if isinstance(x.labels, int) else ids)


def _rarest(model, sequences, count):
    """So many words of the data, the rarest last; none that means something to the model."""
    counts = Counter(chain.from_iterable(x.input_ids for x in sequences))
    config = text_config(model)
    for name, value in vars(config).items() if hasattr(config, "__dict__") else ():
        for token in value if isinstance(value, list) else [value]:
            if _SPECIAL(name) and isinstance(token, int):
                counts.pop(token, None)
    return heapq.nsmallest(count, counts, key=counts.__getitem__)[::-1]
