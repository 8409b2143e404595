"""Data: texts → tokenised sequences → right-padded batches, always in the given order.

Shapes: n sequences of a batch, S tokens of its longest one. Padding is known by `attention_mask`
alone, never by a token id; `labels` is −100 where there is no loss. Labels sit in the usual Hugging
Face position (labels[t] is the token at t): the shift by one belongs to the objective.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import count

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from msif.core import checks, rows, turns
from msif.core.rows import split_answer as split_answer
from msif.core.rows import word_tokenizer as word_tokenizer
from msif.core.sequences import NO_LOSS as NO_LOSS
from msif.core.sequences import Sequence as Sequence
from msif.core.sequences import check as check
from msif.core.shown import row_table as row_table
from msif.core.sources import FORMATS as FORMATS
from msif.core.sources import load_rows as load_rows
from msif.core.sources import load_texts as load_texts


@dataclass(frozen=True)
class Batch:
    """n sequences as the model reads them."""

    index: Tensor  # (n,) int64
    input_ids: Tensor  # (n, S) int64, right padded
    attention_mask: Tensor  # (n, S) int64, 1 = real token
    labels: Tensor  # (n, S) int64, −100 = no loss; or (n,) int64 classes

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def collate(sequences: list[Sequence]) -> Batch:
    """Pad on the right to the longest sequence.

    The mask alone tells the pad id 0 from a token 0.
    """

    def padded(rows, value):
        return pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
        )

    ids = [s.input_ids for s in sequences]
    labels = [s.labels for s in sequences]
    return Batch(
        index=torch.tensor([s.index for s in sequences]),
        input_ids=padded(ids, 0),
        attention_mask=padded([[1] * len(row) for row in ids], 0),
        labels=torch.tensor(labels) if isinstance(labels[0], int) else padded(labels, NO_LOSS),
    )


def batches(sequences: list[Sequence], size: int) -> Iterator[Batch]:
    """Batches of `size` sequences (the last may be smaller) in the given order."""
    size = checks.whole("batch size", size)
    return (collate(sequences[i : i + size]) for i in range(0, len(sequences), size))


def buckets(sequences: list[Sequence], size: int) -> list[list[int]]:
    """Positions in `sequences`, in groups of `size` of similar length, longest first.

    Equally long ones keep their order.
    """
    size = checks.whole("batch size", size)
    order = sorted(range(len(sequences)), key=lambda n: -len(sequences[n].input_ids))
    return [order[i : i + size] for i in range(0, len(order), size)]


def grouped(sequences: list[Sequence], size: int, together: str = "any") -> list[list[int]]:
    """As `buckets`, where any sequences may share a batch; else in groups of at most `size` of one
    length ("equal"), or one by one ("single")."""
    found = buckets(sequences, size)
    if together == "any":
        return found
    if together == "single":
        return [[n] for group in found for n in group]
    alike = defaultdict(list)
    for n, x in enumerate(sequences):
        alike[len(x.input_ids)].append(n)
    return [
        alike[length][first : first + size]
        for length in sorted(alike, reverse=True)
        for first in range(0, len(alike[length]), size)
    ]


def encode_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    context: float = math.inf,
) -> list[Sequence]:
    """Documents with the tokenizer's own special tokens, each once (`rows`), and a loss on every
    token, cut to `max_length`. context: the longest that the model reads, for the advice.

    An index is the text's number in `texts`: blank ones are passed over, but counted. Raises
    ValueError for what is no list of texts, an empty corpus, another document of fewer than 2
    tokens (nothing to predict), a corpus of which every document is longer than `max_length`
    (nothing would be seen whole), and a max_length below 2.
    """
    max_length = checks.whole("max_length", max_length, 2)
    given = checks.texts("document", texts)
    numbers = [n for n, text in enumerate(given) if text.strip()]
    found = rows.document_ids([given[n] for n in numbers], tokenizer)
    if not found:
        raise ValueError("the corpus is empty; expected at least one document")
    for number, row in zip(numbers, found):
        if len(row) < 2:
            raise ValueError(
                f"document {number}, {given[number]!r}, has {len(row)} token(s); "
                "expected at least 2"
            )
    if (shortest := min(map(len, found))) > max_length:
        raise ValueError(
            f"all {len(found)} documents are longer than max_length = {max_length} tokens "
            f"(the shortest has {shortest}); {_more(max_length, context)}split the documents"
        )
    rows.warn_of_nothing_known("document", dict(zip(numbers, found)), tokenizer)
    return [
        Sequence(number, row[:max_length], row[:max_length]) for number, row in zip(numbers, found)
    ]


def encode_answers(
    prompts: Iterable[str],
    answers: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    loss_on: str = "answer",
    *,
    separator: str | None = None,
    closing: str | None = None,
    numbers: Iterable[int] | None = None,
    context: float = math.inf,
) -> list[Sequence]:
    """Rows of a prompt and its answer, with a loss on the answer's tokens alone, or on "all".

    A row is what a document of the same text is, special tokens included: prompt, what stands
    between prompt and answer in the chat format or in running text, answer, and what closes the
    answer in the chat format and the tokenizer's (`rows` says it; `row_table` shows it). separator,
    closing: texts to have in their place, "" for none. It begins with the tokens of the prompt by
    itself, so that a model given the prompt alone sees what it was trained on. numbers: the rows'
    indices, by default from 0. context: as in `encode_documents`.

    Raises ValueError, naming the row, for what is no text, for a prompt or an answer without
    tokens, for an answer of words that the tokenizer does not know, and for a row longer than
    `max_length`: an answer is never cut. Warns, naming the words, where it knows an answer in part.
    """
    if loss_on not in ("answer", "all"):
        raise ValueError(f"loss_on is {loss_on!r}; expected 'answer' or 'all'")
    max_length = checks.whole("max_length", max_length, 2)
    for name, value in (("separator", separator), ("closing", closing)):
        if value is not None:
            checks.text(name, value)
    asked, told = checks.texts("prompt", prompts), checks.texts("answer", answers)
    if len(asked) != len(told):
        raise ValueError(f"{len(asked)} prompts and {len(told)} answers: expected as many")
    form, sequences = rows.format_of(tokenizer), []
    unknown: dict[int, list[str]] = {}
    heads: dict[int, rows.Ids] = {}
    for number, (prompt, answer) in zip(count() if numbers is None else numbers, zip(asked, told)):
        head, tail = rows.split_answer(prompt, answer, tokenizer, separator=separator, form=form)
        if not head:
            raise ValueError(
                f"row {number} has a prompt without tokens, {prompt!r}; "
                "nothing would predict the answer"
            )
        if not tail:
            raise ValueError(
                f"row {number} has an answer without tokens, {answer!r}; expected some text"
            )
        said = tail
        tail += rows.closing_ids(prompt, answer, tokenizer, closing=closing, form=form)
        if (length := len(head + tail)) > max_length:
            raise ValueError(
                f"row {number} has {length} tokens, max_length is {max_length}; "
                f"{_more(max_length, context)}shorten the prompt"
            )
        if words := rows.unknown_words(answer, said, tokenizer):
            if set(said) == {tokenizer.unk_token_id}:
                raise ValueError(
                    f"row {number} has the answer {answer!r}, of which the tokenizer knows nothing "
                    f"(it reads {tokenizer.unk_token}); expected the tokenizer that belongs to the "
                    f"model, or words that it knows"
                )
            unknown[number] = words
        labels = (head if loss_on == "all" else (NO_LOSS,) * len(head)) + tail
        sequences.append(Sequence(number, head + tail, labels))
        heads[number] = head
    if closing is None:
        turns.warn_of_unclosed(dict(zip(heads, zip(asked, told))), tokenizer, form.turn)
    rows.warn_of_unknown(unknown, tokenizer)
    rows.warn_of_nothing_known("prompt", heads, tokenizer)
    return sequences


def _more(max_length, context):
    return "raise max_length or " if max_length < context else "the model reads no more: "


def digest(sequences: Iterable[Sequence]) -> str:
    """sha256 (hex) of indices, ids and labels, order included."""
    sha = hashlib.sha256()
    for s in sequences:
        sha.update(json.dumps([s.index, s.input_ids, s.labels]).encode() + b"\n")
    return sha.hexdigest()
