"""A language model with its tokenizer, and the texts that it reads."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.api.streams import Stream, file_state, kept_apart
from msif.core import checks, data, pairs, rows
from msif.core.adapters import Adapter
from msif.core.generation import greedy
from msif.core.layers import Tracked
from msif.core.models import limits

LONGEST = 2048  # tokens of a document, where neither the call nor the model says less


@dataclass(frozen=True, eq=False)
class Model:
    """A language model with its tokenizer and the layers that influence is computed over.

    tracked: the model and its layers (`core.layers.Tracked`). source: where it was loaded from.
    adapters: those that were merged into its tracked layers, of a folder of adapters (LoRA).
    """

    tracked: Tracked
    tokenizer: PreTrainedTokenizerBase
    source: str
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

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
        or the hub id of a data set, whose `column` is read. They are cut to `max_length` tokens (by
        default 2,048), never more than the model's context. limit: read so many texts or rows at
        most. A document's index is its number among the texts, or its row in the source: blank
        texts are passed over, but counted. The tokenizer's special tokens are put around each.

        Raises ValueError for an empty corpus, what is no text, a document without a token to
        predict, and what `data.load_texts` raises for a source.

        >>> docs = base.documents(["Ada was born in London .", "Bo came from Paris ."])
        >>> len(docs), docs[1].index
        (2, 1)
        """
        if isinstance(texts, str | Path):
            texts = data.load_texts(texts, column, limit=limit)
        chosen = _first(checks.several("document", texts), limit)
        context = limits(self.tracked.model)[1]
        return data.encode_documents(chosen, self.tokenizer, self._longest(max_length), context)

    def stream(
        self,
        texts: Iterable[str] | str | Path,
        *,
        max_length: int | None = None,
        column: str = "text",
        limit: int | None = None,
    ) -> Stream:
        """The same for a corpus that memory does not hold: it is read and tokenised anew each time
        it is gone through.

        Texts of fewer than 2 tokens are passed over, their numbers counted. Raises ValueError for
        an iterator, which could be gone through only once.

        >>> sum(1 for document in base.stream("my/corpus.parquet"))
        3
        """
        if not isinstance(texts, str | Path) and iter(checks.several("document", texts)) is texts:
            raise ValueError(
                "a stream of documents is gone through more than once: expected a list, a path or "
                "another iterable that starts anew, not an iterator"
            )
        if limit is not None:
            limit = checks.whole("limit", limit)
        texts = texts if isinstance(texts, str | Path) else kept_apart(texts)
        longest = self._longest(max_length)
        return Stream(texts, self.tokenizer, longest, column, limit, file_state(texts))

    def answers(
        self,
        prompts: Iterable[str] | str | Path,
        answers: Iterable[str] | None = None,
        *,
        max_length: int | None = None,
        columns: tuple[str, str] = ("prompt", "answer"),
        limit: int | None = None,
        new_tokens: int = 32,
        separator: str | None = None,
        closing: str | None = None,
    ) -> list[data.Sequence]:
        """Fine-tuning rows, or questions: a prompt and its answer, tokenised with a loss on the
        answer.

        prompts: strings, or the path of a file with both `columns`. The prompt must be what the
        model was fine-tuned on, chat format and special words included. Strings without `answers`
        get the model's own (see `questions`). max_length: longer rows are refused; by default the
        model's context. separator, closing: what stands between prompt and answer, and after the
        answer; by default what the tokenizer's chat format has there, if the prompt ends as it
        opens an answer, and otherwise a space, where running text has one, and nothing
        (`core.rows`). `tokens` shows a row as it is.

        Raises ValueError, naming the row, for what is no text, a prompt or an answer without
        tokens, an answer of unknown words, and a row that is too long; what `data.load_rows` raises
        for a source.

        >>> tuned.text(tuned.answers(["Where was Bo born?"], ["Paris"])[0])
        'Where was Bo born? Paris'
        """
        between = {"separator": separator, "closing": closing}
        if isinstance(prompts, str | Path):
            if answers is not None:
                raise ValueError(
                    f"prompts are {str(prompts)!r}, one text or a path, and answers are given: "
                    f"expected a list of prompts beside a list of answers, or a path alone"
                )
            read = data.load_rows(prompts, columns, limit=limit)
            pairs = [(row[columns[0]], row[columns[1]]) for row in read]
        elif answers is None:
            pairs = [(prompt, None) for prompt in checks.several("prompt", prompts)]
        else:
            prompts = list(checks.several("prompt", prompts))
            told = list(checks.several("answer", answers))
            if len(prompts) != len(told):
                raise ValueError(
                    f"{len(prompts)} prompts and {len(told)} answers: expected as many"
                )
            for n, answer in enumerate(told):
                if not isinstance(answer, str):
                    raise ValueError(
                        f"row {n} has the answer {answer!r}; expected text, or, for the "
                        f"model's own answer to a question, `questions`"
                    )
            pairs = list(zip(prompts, told))
        return self._encoded(_first(pairs, limit), max_length, new_tokens, between)

    def questions(
        self,
        asked: Iterable[str | tuple[str, str | None]] | str | Path,
        *,
        max_length: int | None = None,
        columns: tuple[str, str] = ("prompt", "answer"),
        limit: int | None = None,
        new_tokens: int = 32,
        separator: str | None = None,
        closing: str | None = None,
    ) -> list[data.Sequence]:
        """Questions as `answers` makes them of rows, where the model may give its own answer.

        asked: prompts, or (prompt, answer or None) pairs; or the path of a file, of a .txt one each
        line a prompt, of others the `columns`, of which the second may be missing. Where there is
        no answer, the model gives its own: greedily, up to its end-of-sequence token or
        `new_tokens` tokens; it is closed as a given one, if the model ended it. Raises as
        `answers`, and ValueError for a model that answers nothing.

        >>> [own] = tuned.questions(["Where was Bo born?"], new_tokens=1)
        >>> sum(label != -100 for label in own.labels)
        1
        """
        between = {"separator": separator, "closing": closing}
        if isinstance(asked, str | Path):
            text = Path(asked).suffix.lower() == ".txt"
            prompt, answer = ("text", "answer") if text else columns
            read = data.load_rows(asked, [prompt], [answer], limit=limit)
            pairs = [(row[prompt], row[answer]) for row in read]
            return self._encoded(pairs, max_length, new_tokens, between)
        pairs = [(x, None) if isinstance(x, str) else x for x in checks.several("question", asked)]
        for n, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"question {n} is {pair!r}: expected a prompt or a (prompt, answer) pair"
                )
        return self._encoded(_first(pairs, limit), max_length, new_tokens, between)

    def preferences(
        self,
        prompts: Iterable[str],
        chosen: Iterable[str],
        rejected: Iterable[str],
        *,
        max_length: int | None = None,
        separator: str | None = None,
        closing: str | None = None,
    ) -> list[pairs.Pair]:
        """Pairs that a stage of preferences (DPO) was trained on: a prompt with an answer that was
        chosen and one that was rejected, tokenised as `answers` makes rows. Raises as it does.

        >>> [pair] = tuned.preferences(["Where was Bo born?"], ["Paris"], ["London"])
        """
        prompts = list(checks.several("prompt", prompts))
        options: Any = {"max_length": max_length, "separator": separator, "closing": closing}
        sides = (self.answers(prompts, told, **options) for told in (chosen, rejected))
        return pairs.paired(*sides)

    def _encoded(self, given, max_length, new_tokens, between):
        """Sequences of [(prompt, answer, or None for the model's own)]."""
        longest = self._longest(max_length, sys.maxsize)
        prompts = checks.texts("prompt", [prompt for prompt, _ in given])
        own = {n: prompts[n] for n, (_, answer) in enumerate(given) if answer is None}
        told = {
            n: checks.text(f"answer {n}", answer)
            for n, (_, answer) in enumerate(given)
            if answer is not None
        }
        found = self._said(own, new_tokens, longest, between["closing"])
        asked, context = [prompts[n] for n in told], limits(self.tracked.model)[1]
        more = {"numbers": told, "context": context, **between}
        encoded = data.encode_answers(asked, list(told.values()), self.tokenizer, longest, **more)
        found.update({row.index: row for row in encoded})
        return [found[n] for n in range(len(given))]

    def text(self, sequence: data.Sequence | pairs.Pair) -> str:
        """A sequence as text, without special tokens; of a pair, chosen ≻ rejected."""
        if isinstance(sequence, pairs.Pair):
            return f"{self.text(sequence.chosen)} ≻ {self.text(sequence.rejected)}"
        return str(self.tokenizer.decode(list(sequence.input_ids), skip_special_tokens=True))

    def tokens(self, sequence: data.Sequence) -> str:
        """A sequence token by token with its labels, to print: what the model reads, and what is
        scored of it (`data.row_table`).

        >>> print(tuned.tokens(tuned.answers(["Where was Bo born?"], ["Paris"])[0]))
                   id  token                    label
            0      15  'Where'                  –
            1      22  ' was'                   –
            2       4  ' Bo'                    –
            3      17  ' born?'                 –
            4      13  ' Paris'                 ' Paris'
        """
        return data.row_table(sequence, self.tokenizer)

    def _longest(self, max_length, otherwise=LONGEST):
        if max_length is not None:
            otherwise = checks.whole("max_length", max_length, 2)
        return int(min(limits(self.tracked.model)[1], otherwise))

    def _said(self, prompts, new_tokens, longest, closing):
        """{number: "prompt answer" with the model's own greedy answer}."""
        new_tokens = checks.whole("new_tokens", new_tokens)
        form = rows.format_of(self.tokenizer)
        heads, after = {}, {}
        for n, prompt in prompts.items():
            heads[n] = rows.split_answer(prompt, "", self.tokenizer, form=form)[0]
            after[n] = rows.closing_ids(prompt, "", self.tokenizer, closing=closing, form=form)
            if not 0 < len(heads[n]) <= longest - new_tokens - len(after[n]):
                raise ValueError(
                    f"row {n} has a prompt of {len(heads[n])} tokens: expected 1 to "
                    f"{longest - new_tokens - len(after[n])}, to leave room for {new_tokens} of an "
                    f"answer"
                )
        ends = self._ends()
        tails = greedy(self.tracked.model, list(heads.values()), new_tokens, stop=ends)
        for n, tail in zip(heads, tails):
            if not tail:
                raise ValueError(
                    f"row {n}: to {prompts[n]!r} the model answers nothing (it ends at once): give "
                    f"an answer, or put the prompt into the format that it was fine-tuned on"
                )
        said = {}
        for (n, head), tail in zip(heads.items(), tails):
            if len(tail) < new_tokens and after[n] and (closing is not None or after[n][0] in ends):
                tail = [*tail, *after[n]]
            said[n] = data.Sequence(n, (*head, *tail), (data.NO_LOSS,) * len(head) + tuple(tail))
        return said

    def _ends(self):
        """The ids that end what the model writes."""
        config = getattr(self.tracked.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        listed = found if isinstance(found, list) else [found]
        return {x for x in (*listed, self.tokenizer.eos_token_id) if x is not None}


def _first(values, limit):
    return list(islice(values, None if limit is None else checks.whole("limit", limit)))
