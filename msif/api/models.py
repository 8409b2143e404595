"""A language model with its tokenizer, and the texts that it reads."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from msif.core import data
from msif.core.generation import greedy
from msif.core.layers import Tracked, tracked
from msif.core.models import limits, load_model, load_tokenizer
from msif.scale import processes, streaming

LONGEST = 2048  # tokens of a document, where neither the call nor the model says less


@dataclass(frozen=True, eq=False)
class Model:
    """A language model with its tokenizer and the layers that influence is computed over.

    tracked: the model and its layers (`core.layers.Tracked`). source: where it was loaded from.
    """

    tracked: Tracked
    tokenizer: PreTrainedTokenizerBase
    source: str

    def documents(
        self,
        texts: Iterable[str] | str | Path,
        *,
        max_length: int | None = None,
        column: str = "text",
        limit: int | None = None,
    ) -> list[data.Sequence]:
        """Pre-training documents, tokenised with a loss on every token: a list of `data.Sequence`.

        texts: strings; or the path of a .jsonl, .parquet or .txt file, of a folder of such files,
        or the hub id of a data set, whose `column` is read. They are cut to `max_length` tokens, by
        default the model's context, at most 2,048. limit: read so many at most.

        Raises ValueError for an empty corpus, a document without a token to predict, and what
        `data.load_texts` raises for a source.

        >>> docs = base.documents(["Ada was born in London .", "Bo came from Paris ."])
        >>> len(docs), docs[1].index
        (2, 1)
        """
        if isinstance(texts, str | Path):
            texts = data.load_texts(texts, column, limit=limit)
        chosen = list(texts)[:limit]
        return data.encode_documents(chosen, self.tokenizer, self._longest(max_length))

    def stream(
        self,
        texts: Iterable[str] | str | Path,
        *,
        max_length: int | None = None,
        column: str = "text",
        limit: int | None = None,
    ) -> "Stream":
        """The same for a corpus that memory does not hold: it is read and tokenised anew each time
        it is gone through.

        Texts of fewer than 2 tokens are passed over, their numbers counted. Raises ValueError for
        an iterator, which could be gone through only once.

        >>> sum(1 for document in base.stream("my/corpus.parquet"))
        3
        """
        if not isinstance(texts, str | Path) and iter(texts) is texts:
            raise ValueError(
                "a stream of documents is gone through more than once: expected a list, a path or "
                "another iterable that starts anew, not an iterator"
            )
        return Stream(texts, self.tokenizer, self._longest(max_length), column, limit)

    def answers(
        self,
        prompts: Iterable[str] | str | Path,
        answers: Iterable[str | None] | None = None,
        *,
        max_length: int | None = None,
        columns: tuple[str, str] = ("prompt", "answer"),
        limit: int | None = None,
        new_tokens: int = 32,
    ) -> list[data.Sequence]:
        """Fine-tuning rows, or questions: "prompt answer", tokenised with a loss on the answer.

        prompts: strings, or the path of a file with these `columns` (of a .txt file, each line is a
        prompt). The prompt must be what the model was fine-tuned on, chat format and special words
        included. Where there is no answer, the model gives its own: greedily, up to its
        end-of-sequence token or `new_tokens` tokens. max_length: longer rows are refused; by
        default the model's context.

        Raises ValueError, naming the row, for a prompt or an answer without tokens, and for a row
        that is too long; what `data.load_rows` raises for a source.

        >>> tuned.text(tuned.answers(["Where was Bo born?"], ["Paris"])[0])
        'Where was Bo born? Paris'
        >>> [asked] = tuned.answers(["Where was Bo born?"], new_tokens=1)  # the model's own word
        >>> sum(label != -100 for label in asked.labels)
        1
        """
        if isinstance(prompts, str | Path):
            asked, answers = _columns(prompts, columns, limit)
        else:
            asked = list(prompts)[:limit]
        given = [None] * len(asked) if answers is None else list(answers)[:limit]
        if len(given) != len(asked):
            raise ValueError(f"{len(asked)} prompts and {len(given)} answers: expected as many")
        longest = self._longest(max_length, sys.maxsize)
        told = {n: answer for n, answer in enumerate(given) if answer is not None}
        own = {n: prompt for n, prompt in enumerate(asked) if n not in told}
        rows = self._said(own, new_tokens, longest)
        if told:
            texts = [asked[n] for n in told], list(told.values())
            for n, row in zip(told, data.encode_answers(*texts, self.tokenizer, longest)):
                rows[n] = data.Sequence(n, row.input_ids, row.labels)
        return [rows[n] for n in range(len(asked))]

    def text(self, sequence: data.Sequence) -> str:
        """A sequence as text, without special tokens."""
        return str(self.tokenizer.decode(list(sequence.input_ids), skip_special_tokens=True))

    def _longest(self, max_length, otherwise=LONGEST):
        return int(min(limits(self.tracked.model)[1], max_length or otherwise))

    def _said(self, prompts, new_tokens, longest):
        """{number: "prompt answer" with the model's own greedy answer}."""
        if new_tokens < 1:
            raise ValueError(f"new_tokens is {new_tokens}; expected at least 1")
        heads = {n: data.split_answer(x, "", self.tokenizer)[0] for n, x in prompts.items()}
        for n, head in heads.items():
            if not 0 < len(head) <= longest - new_tokens:
                raise ValueError(
                    f"row {n} has a prompt of {len(head)} tokens: expected 1 to "
                    f"{longest - new_tokens}, to leave room for {new_tokens} of an answer"
                )
        ends = self._ends()
        tails = greedy(self.tracked.model, list(heads.values()), new_tokens, stop=ends)
        for n, tail in zip(heads, tails):
            if not tail:
                raise ValueError(
                    f"row {n}: to {prompts[n]!r} the model answers nothing (it ends at once): give "
                    f"an answer, or put the prompt into the format that it was fine-tuned on"
                )
        return {
            n: data.Sequence(n, (*head, *tail), (data.NO_LOSS,) * len(head) + tuple(tail))
            for (n, head), tail in zip(heads.items(), tails)
        }

    def _ends(self):
        """The ids that end what the model writes."""
        config = getattr(self.tracked.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        listed = found if isinstance(found, list) else [found]
        return {x for x in (*listed, self.tokenizer.eos_token_id) if x is not None}


@dataclass(frozen=True)
class Stream:
    """Documents that are read and tokenised anew each time they are gone through."""

    texts: Iterable[str] | str | Path
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    column: str = "text"
    limit: int | None = None

    def __iter__(self) -> Iterator[data.Sequence]:
        texts = self.texts
        if isinstance(texts, str | Path):
            texts = data.load_texts(texts, self.column, streaming=True, limit=self.limit)
        return streaming.tokenised(texts, self.tokenizer, self.max_length)


def _columns(source, columns, limit):
    """(prompts, answers or None) of a file."""
    if Path(source).suffix == ".txt":
        rows = data.load_rows(source, ["text"], limit=limit)
        return [row["text"] for row in rows], None
    prompt, answer = columns
    rows = data.load_rows(source, [prompt], [answer], limit=limit)
    return [row[prompt] for row in rows], [row[answer] for row in rows]


def load(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    revision: str | None = None,
    pattern: str | None = None,
    per_head: bool = False,
) -> Model:
    """The causal language model at `source`: a hub id, or a folder with config.json and
    *.safetensors; code that comes with it never runs.

    tokenizer: where to read it from, if not from `source`. dtype: of the weights, "bfloat16" halves
    the memory of large models. device: by default the GPU of this process, if there is one. pattern
    and per_head: which layers are tracked (`layers.tracked_layers`); by default all linear layers
    of attention and MLP, every other weight counts as fixed.

    Raises OSError, naming the source, if nothing can be loaded from it; ValueError for weights that
    lack parameters, and where no layer can be tracked.

    >>> base = msif.load("my/base")
    >>> len(base.tracked.layers)
    14
    """
    model = load_model(source, dtype, device or processes.device(), revision)
    words = load_tokenizer(tokenizer or source, None if tokenizer else revision)
    return Model(tracked(model, pattern, per_head), words, str(source))
