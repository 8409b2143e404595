"""Data: texts → tokenised sequences → right-padded batches, always in the given order.

Shapes: n sequences of a batch, S tokens of its longest one. Padding is known by `attention_mask`
alone, never by a token id; `labels` is −100 where there is no loss. Labels sit in the usual Hugging
Face position (labels[t] is the token at t): the shift by one belongs to the objective.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from msif.core.extras import need

NO_LOSS = -100
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class Sequence:
    """One tokenised document, fine-tuning row or query.

    index: its number in its data set; keys the sampled labels, so that they never depend on
    batching. labels: one per token, −100 for no loss; or one class, for sequence classifiers.
    """

    index: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...] | int


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
    if size < 1:
        raise ValueError(f"batch size is {size}; expected at least 1")
    return (collate(sequences[i : i + size]) for i in range(0, len(sequences), size))


def buckets(sequences: list[Sequence], size: int) -> list[list[int]]:
    """Positions in `sequences`, in groups of `size` of similar length, longest first.

    Equally long ones keep their order.
    """
    if size < 1:
        raise ValueError(f"batch size is {size}; expected at least 1")
    order = sorted(range(len(sequences)), key=lambda n: -len(sequences[n].input_ids))
    return [order[i : i + size] for i in range(0, len(order), size)]


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Sequence]:
    """Documents with the tokenizer's own special tokens and a loss on every token.

    They are cut to `max_length`. Raises ValueError for an empty corpus, a document of fewer than 2
    tokens (nothing to predict), and a corpus of which every document is longer than `max_length`
    (nothing would be seen whole).
    """
    texts = list(texts)
    rows = [tuple(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
    if not rows:
        raise ValueError("the corpus is empty; expected at least one document")
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise ValueError(
                f"document {number}, {texts[number]!r}, has {len(row)} token(s); "
                "expected at least 2"
            )
    if (shortest := min(map(len, rows))) > max_length:
        raise ValueError(
            f"all {len(rows)} documents are longer than max_length = {max_length} tokens "
            f"(the shortest has {shortest}); raise max_length or split the documents"
        )
    return [Sequence(number, row[:max_length], row[:max_length]) for number, row in enumerate(rows)]


def encode_answers(
    prompts: Iterable[str],
    answers: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    loss_on: str = "answer",
) -> list[Sequence]:
    """Rows "prompt answer", no special tokens; loss on the answer's tokens alone, or on "all".

    A row begins with the tokens of the prompt by itself, so that a model given the prompt alone
    sees what it was trained on. Raises ValueError, naming the row, for a prompt or an answer
    without tokens and for a row longer than `max_length`: an answer is never cut.
    """
    if loss_on not in ("answer", "all"):
        raise ValueError(f"loss_on is {loss_on!r}; expected 'answer' or 'all'")
    sequences = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        head, tail = split_answer(prompt, answer, tokenizer)
        if not head:
            raise ValueError(
                f"row {number} has a prompt without tokens, {prompt!r}; "
                "nothing would predict the answer"
            )
        if not tail:
            raise ValueError(
                f"row {number} has an answer without tokens, {answer!r}; expected some text"
            )
        if (length := len(head + tail)) > max_length:
            raise ValueError(
                f"row {number} has {length} tokens, max_length is {max_length}; "
                "raise max_length or shorten the prompt"
            )
        labels = (head if loss_on == "all" else (NO_LOSS,) * len(head)) + tail
        sequences.append(Sequence(number, head + tail, labels))
    return sequences


def split_answer(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the prompt by itself, and of the answer that follows it after a space."""

    def ids(text):
        return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    head = ids(prompt)
    if not answer.strip():
        return head, ()
    whole = ids(prompt + " " + answer)
    # Merged across the boundary, as where a prompt ends in a space: each side is tokenised alone.
    return head, whole[len(head) :] if whole[: len(head)] == head else ids(answer)


def check(sequences: list[Sequence], vocab_size: float, context: float) -> None:
    """Raise ValueError, naming the sequence and the value, for what the model cannot read.

    That is ids or labels beyond its vocabulary, more tokens than its context, or no label with a
    prediction (labels[0] has none). Either limit may be infinite (`models.limits`).
    """
    if not sequences:
        raise ValueError("there are no sequences; expected at least one")
    for s in sequences:
        if not 0 < len(s.input_ids) <= context:
            raise ValueError(
                f"sequence {s.index} has {len(s.input_ids)} tokens; "
                f"expected 1 to {context}, the model's context"
            )
        labels = () if isinstance(s.labels, int) else s.labels
        for token in (*s.input_ids, *(label for label in labels if label != NO_LOSS)):
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"sequence {s.index} has token id {token}; the model's vocabulary has "
                    f"{vocab_size}: use the tokenizer that belongs to the model"
                )
        if not isinstance(s.labels, int):
            _check_labels(s, s.labels)


def _check_labels(s: Sequence, labels: tuple[int, ...]) -> None:
    if len(labels) != len(s.input_ids):
        raise ValueError(
            f"sequence {s.index} has {len(labels)} labels for {len(s.input_ids)} tokens"
        )
    if all(label == NO_LOSS for label in labels[1:]):
        raise ValueError(
            f"sequence {s.index} has no label to predict; expected one after the first token"
        )


def digest(sequences: Iterable[Sequence]) -> str:
    """sha256 (hex) of indices, ids and labels, order included."""
    sha = hashlib.sha256()
    for s in sequences:
        sha.update(json.dumps([s.index, s.input_ids, s.labels]).encode() + b"\n")
    return sha.hexdigest()


def load_texts(
    source: str | Path,
    column: str = "text",
    split: str = "train",
    streaming: bool = False,
    limit: int | None = None,
    revision: str | None = None,
) -> list[str] | Iterator[str]:
    """The texts of a file, a folder or a hub data set, blank ones skipped.

    source: a .jsonl, .parquet or .txt file (one text a line), a local folder of such files, or the
    id of a dataset on the hub. Gives a list, or with `streaming` an iterator that never holds the
    corpus; `limit` texts at most. Raises FileNotFoundError for a path that is not there and
    ValueError for a limit below 1, an unknown format, an unreadable or empty corpus, a missing
    column (naming those there are) and a value that is not text (naming its row).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1, or None for all")
    rows = _open(str(source), split, streaming, revision)
    first = next(iter(rows), {column: ""})
    if column not in first:
        raise ValueError(
            f"{source} has no column {column!r}; its columns are {', '.join(sorted(first))}"
        )
    if next(_texts(rows, column, source), None) is None:
        raise ValueError(f"{source} ({split}) is empty; expected at least one text")
    texts = islice(_texts(rows, column, source), limit)
    return texts if streaming else list(texts)


def load_rows(
    source: str | Path,
    columns: Collection[str],
    optional: Collection[str] = (),
    split: str = "train",
    limit: int | None = None,
    revision: str | None = None,
) -> list[dict[str, str | None]]:
    """Rows of several columns together, as a .jsonl or .parquet file, a folder or a hub data set
    has them, none left out: [{column: text, or None where an optional one has none}].

    Raises as `load_texts`, for a missing column of `columns` and a value there that is not text.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1, or None for all")
    found: list[dict[str, str | None]] = []
    for number, row in enumerate(islice(_open(str(source), split, False, revision), limit)):
        for column in columns:
            if column not in row:
                there = ", ".join(sorted(row))
                raise ValueError(f"{source} has no column {column!r}; its columns are {there}")
        values = {column: row.get(column) for column in (*columns, *optional)}
        for column, value in values.items():
            if not (isinstance(value, str) or (value is None and column in optional)):
                raise ValueError(f"{source}, row {number}: {column!r} is {value!r}; expected text")
        found.append(values)
    if not found:
        raise ValueError(f"{source} ({split}) is empty; expected at least one row")
    return found


def _texts(rows, column: str, source) -> Iterator[str]:
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise ValueError(
                f"{source}, row {number}: {column!r} is {row[column]!r}; expected text"
            )
        if row[column].strip():
            yield row[column]


def _open(source: str, split: str, streaming: bool, revision: str | None):
    """The rows of a file, a folder or a hub data set."""
    path = Path(source)
    local = (
        path.is_absolute()
        or source.startswith(".")
        or path.suffix in FORMATS
        or source.count("/") > 1
    )
    if local and not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a file, a folder or a dataset's hub id"
        )
    if path.is_file() and path.suffix not in FORMATS:
        raise ValueError(f"{path} is not a known format; expected {', '.join(FORMATS)}")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected at least one text")
    datasets = need("datasets")
    kind, files = (FORMATS[path.suffix], {split: source}) if path.is_file() else (source, None)
    try:
        return datasets.load_dataset(
            kind, data_files=files, split=split, streaming=streaming, revision=revision
        )
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        raise ValueError(
            f"{source} ({split}) cannot be read: {error.__cause__ or error}"
        ) from error


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per space-separated word: <pad>, <unk>, then the words of `texts` by alphabet."""
    words = sorted({word for text in texts for word in text.split()} - {"<pad>", "<unk>"})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
