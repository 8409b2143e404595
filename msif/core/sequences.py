"""A tokenised sequence, and what of a list of them a model cannot read.

Labels sit in the usual Hugging Face position (labels[t] is the token at t); −100 where there is no
loss.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NO_LOSS = -100


@dataclass(frozen=True)
class Sequence:
    """One tokenised document, fine-tuning row or query.

    index: its number in its data set; keys the sampled labels, so that they never depend on
    batching. labels: one per token, −100 for no loss; or one class, for sequence classifiers.
    Numbers of numpy or torch become Python's; ValueError for what are no whole numbers.
    """

    index: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...] | int

    def __post_init__(self):
        ids, labels = self.input_ids, self.labels
        one = isinstance(labels, str) or not (
            hasattr(labels, "__len__") and getattr(labels, "ndim", 1)
        )
        object.__setattr__(self, "index", _integer(self.index, "an index"))
        what = f"sequence {self.index}"
        object.__setattr__(self, "input_ids", _integers(ids, what))
        if labels is ids:
            made = self.input_ids
        else:
            made = _integer(labels, f"{what}: its class") if one else _integers(labels, what)
        object.__setattr__(self, "labels", made)


def _integers(values, what) -> tuple[int, ...]:
    if type(values) is tuple and set(map(type, values)) <= {int}:
        return values
    return tuple(_integer(x, f"{what}: an id or label") for x in values)


def _integer(value, what) -> int:
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool) or isinstance(value, str):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise ValueError(
            f"{what} is {value!r}; expected a whole number: a token's id, or a class from 0"
        ) from error


def check(
    sequences: list[Sequence], vocab_size: float, context: float, classes: float = math.inf
) -> None:
    """Raise ValueError, naming the sequence and the value, for what the model cannot read.

    That is ids or labels beyond its vocabulary, more tokens than its context, no label with a
    prediction (labels[0] has none), a class that it does not have, or an index that two sequences
    share; and what is no list of sequences. Limits may be infinite (`models.limits`, `classes`).
    """
    if not isinstance(sequences, list | tuple):
        raise ValueError(
            f"the sequences are a {type(sequences).__name__}; expected a list of data.Sequence "
            f"(of what may be read once alone, give list(…))"
        )
    if not sequences:
        raise ValueError("there are no sequences; expected at least one")
    if (n := next((n for n, s in enumerate(sequences) if not isinstance(s, Sequence)), -1)) >= 0:
        raise ValueError(
            f"sequence {n} is {reprlib.repr(sequences[n])}; expected a data.Sequence, as "
            f"encode_documents and encode_answers make them"
        )
    distinct(sequences)
    for s in sequences:
        if not 0 < len(s.input_ids) <= context:
            raise ValueError(
                f"sequence {s.index} has {len(s.input_ids)} tokens; "
                f"expected 1 to {context}, the model's context"
            )
        labels = () if isinstance(s.labels, int) else s.labels
        tokens = {*s.input_ids, *(set(labels) - {NO_LOSS})}
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"sequence {s.index} has token id {token}; the model's vocabulary has "
                    f"{vocab_size}: use the tokenizer that belongs to the model"
                )
        if not isinstance(s.labels, int):
            _check_labels(s, s.labels)
        elif not 0 <= s.labels < classes:
            below = f", below {classes}" if classes < math.inf else ""
            raise ValueError(
                f"sequence {s.index} has the class {s.labels}; expected one from 0{below}"
            )


def distinct(sequences: Iterable[Sequence]) -> None:
    """Raise ValueError unless every sequence has an index of its own.

    The index keys sampled labels, and tells what a score is of.
    """
    indices = [s.index for s in sequences]
    if len(set(indices)) < len(indices):
        twice = next(i for i, n in Counter(indices).items() if n > 1)
        raise ValueError(
            f"{len(indices) - len(set(indices))} sequences share their index with another, such as "
            f"index {twice}; each needs its own"
        )


def _check_labels(s: Sequence, labels: tuple[int, ...]) -> None:
    if len(labels) != len(s.input_ids):
        raise ValueError(
            f"sequence {s.index} has {len(labels)} labels for {len(s.input_ids)} tokens"
        )
    if all(label == NO_LOSS for label in labels[1:]):
        raise ValueError(
            f"sequence {s.index} has no label to predict; expected one after the first token"
        )
