"""A language model with its tokenizer, and the texts that it reads."""

import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.api.own import Open, answered
from msif.api.streams import Stream, file_state, kept_apart
from msif.core import checks, conversations, data, forms, messages, pairs, rows, turns
from msif.core.adapters import Adapter
from msif.core.layers import Tracked
from msif.core.models import limits

LONGEST = 2048  # tokens of a document, where neither the call nor the model says less
FOREVER = sys.maxsize


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
        chosen = checks.first(checks.several("document", texts), limit)
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
        prompts: Iterable[Any] | str | Path,
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
        answer; or conversations, with a loss on every turn of the assistant.

        prompts: strings; or rows with both `columns`, or the path of a file of these. The prompt
        must be what the model was fine-tuned on, chat format and special words included. Strings
        without `answers` get the model's own (see `questions`). Conversations: lists of {"role": …,
        "content": …}, or rows with such a list as `messages`, or as prompt and as answer: then all
        that follows the prompt has the loss. The tokenizer's chat template renders them
        (`core.conversations`). `completion` is another name of the column `answer`; rows that could
        be read in two ways are refused (`core.forms`). max_length: longer rows are refused; by
        default the model's context. separator, closing: what stands between prompt and answer, and
        after the answer; by default what the tokenizer's chat format has there, if the prompt ends
        as it opens an answer, and otherwise a space, where running text has one, and nothing
        (`core.rows`). `tokens` shows a row as it is.

        Raises ValueError, naming the row, for what is no text, a prompt or an answer without
        tokens, an answer of unknown words, and a row that is too long; what `data.load_rows` raises
        for a source.

        >>> tuned.text(tuned.answers(["Where was Bo born?"], ["Paris"])[0])
        'Where was Bo born? Paris'
        """
        between = {"separator": separator, "closing": closing}
        if isinstance(prompts, str | Path) and answers is not None:
            raise ValueError(
                f"prompts are {str(prompts)!r}, one text or a path, and answers are given: "
                f"expected a list of prompts beside a list of answers, or a path alone"
            )
        if not isinstance(prompts, str | Path):
            prompts = list(checks.several("prompt", prompts))
        given = forms.read(prompts, columns, limit)
        if given is not None and answers is not None:
            assert isinstance(prompts, list)  # a path beside answers is refused above
            raise ValueError(
                f"answers are given beside rows or conversations, which have their own (row 0 is "
                f"{reprlib.repr(prompts[0])}): expected prompts of text beside them"
            )
        if isinstance(given, forms.Chats):
            conversations.no_text_between(between)
            options = {"max_length": self._longest(max_length, FOREVER), "loss_on": given.loss}
            return conversations.encode(given.conversations, self.tokenizer, **options)
        if given is not None:
            return self._encoded(given, max_length, new_tokens, between)
        assert isinstance(prompts, list)  # a source has rows
        pairs: forms.Texts
        if answers is None:
            pairs = [(prompt, None) for prompt in prompts]
        else:
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
        return self._encoded(checks.first(pairs, limit), max_length, new_tokens, between)

    def questions(
        self,
        asked: Iterable[Any] | str | Path,
        *,
        max_length: int | None = None,
        columns: tuple[str, str] = ("prompt", "answer"),
        limit: int | None = None,
        new_tokens: int = 32,
        separator: str | None = None,
        closing: str | None = None,
    ) -> list[data.Sequence]:
        """Questions as `answers` makes them of rows, where the model may give its own answer.

        asked: prompts, (prompt, answer or None) pairs, or conversations as `answers` reads them, of
        which the last turn alone is asked about; or rows as `answers` reads them, whose answer may
        be missing, or the path of a file of these, of a .txt one each line a prompt. Where
        there is no answer, or a conversation ends with the user, the model gives its own: greedily,
        up to what ends its turn (`api.own.ends`) or `new_tokens` tokens; it is closed as a given
        one, if the model ended it. Raises as `answers`, and ValueError for a model that answers
        nothing.

        >>> [own] = tuned.questions(["Where was Bo born?"], new_tokens=1)
        >>> sum(label != -100 for label in own.labels)
        1
        """
        between = {"separator": separator, "closing": closing}
        if not isinstance(asked, str | Path):
            asked = list(checks.several("question", asked))
        elif Path(asked).suffix.lower() == ".txt":
            columns = ("text", forms.ANSWER)
        given = forms.read(asked, columns, limit, due=False)
        if isinstance(given, forms.Chats):
            conversations.no_text_between(between)
            return self._conversed(given, max_length, new_tokens)
        if given is not None:
            return self._encoded(given, max_length, new_tokens, between)
        assert isinstance(asked, list)  # a source has rows
        pairs = [(x, None) if isinstance(x, str) else x for x in asked]
        for n, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"question {n} is {pair!r}: expected a prompt or a (prompt, answer) pair"
                )
        return self._encoded(checks.first(pairs, limit), max_length, new_tokens, between)

    def preferences(
        self,
        prompts: Iterable[Any] | str | Path,
        chosen: Iterable[str] | None = None,
        rejected: Iterable[str] | None = None,
        *,
        max_length: int | None = None,
        limit: int | None = None,
        separator: str | None = None,
        closing: str | None = None,
    ) -> list[pairs.Pair]:
        """Pairs that a stage of preferences (DPO) was trained on: a prompt with an answer that was
        chosen and one that was rejected, tokenised as `answers` makes rows. Raises as it does.

        prompts: strings, beside `chosen` and `rejected`; or, alone, rows with all three, or the
        path of a file of these. There each may be a list of messages, and the prompt missing, or
        the text of the first turn, if the others are whole conversations
        (`core.conversations.encode_pairs`).

        >>> [pair] = tuned.preferences(["Where was Bo born?"], ["Paris"], ["London"])
        """
        options: Any = {"max_length": max_length, "separator": separator, "closing": closing}
        if chosen is None and rejected is None:
            rows = messages.preferences(prompts, limit)
            if not all(isinstance(row[x], str) for row in rows for x in ("chosen", "rejected")):
                conversations.no_text_between(options)
                longest = self._longest(max_length, FOREVER)
                return conversations.encode_pairs(rows, self.tokenizer, longest)
            asked, *told = ([row.get(x) for row in rows] for x in messages.PREFERENCE)
        else:
            asked = list(checks.several("prompt", prompts))
            told = [list(checks.several("answer", x or ())) for x in (chosen, rejected)]
        sides = (self.answers(asked, side, limit=limit, **options) for side in told)
        return pairs.paired(*sides)

    def _conversed(self, given, max_length, new_tokens):
        """Sequences of conversations, with a loss on the last turn, the model's own if missing."""
        longest, chats = self._longest(max_length, FOREVER), given.conversations
        loss = "last" if given.loss == "turns" else given.loss
        told = {n: x for n, x in enumerate(chats) if not messages.is_open(x)}
        due, dated = {}, False
        for n, chat in enumerate(chats):
            if n not in told:
                opened = conversations.opened(chat, self.tokenizer, f"row {n}", loss)
                due[n] = Open(chat[-1]["content"], *opened)
                dated = dated or turns.is_dated(chat, self.tokenizer)
        turns.warn_of_date(dated)
        found = answered(self.tracked, self.tokenizer, due, new_tokens, longest)
        rows = conversations.encode(told.values(), self.tokenizer, longest, loss, told)
        found.update({row.index: row for row in rows})
        return [found[n] for n in range(len(chats))]

    def _encoded(self, given, max_length, new_tokens, between):
        """Sequences of [(prompt, answer, or None for the model's own)]."""
        longest = self._longest(max_length, FOREVER)
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

    def tokens(self, sequence: data.Sequence | pairs.Pair) -> str:
        """A sequence token by token with its labels, to print: what the model reads, and what is
        scored of it (`data.row_table`); of a pair, the chosen one's, then the rejected one's.

        >>> print(tuned.tokens(tuned.answers(["Where was Bo born?"], ["Paris"])[0]))
                   id  token                    label
            0      15  'Where'                  –
            1      22  ' was'                   –
            2       4  ' Bo'                    –
            3      17  ' born?'                 –
            4      13  ' Paris'                 ' Paris'
        """
        if isinstance(sequence, pairs.Pair):
            sides = ("chosen", sequence.chosen), ("rejected", sequence.rejected)
            return "\n".join(f"{name}:\n{self.tokens(x)}" for name, x in sides)
        return data.row_table(sequence, self.tokenizer)

    def _longest(self, max_length, otherwise=LONGEST):
        if max_length is not None:
            otherwise = checks.whole("max_length", max_length, 2)
        return int(min(limits(self.tracked.model)[1], otherwise))

    def _said(self, prompts, new_tokens, longest, closing):
        """{number: "prompt answer" with the model's own greedy answer}."""
        form, due = rows.format_of(self.tokenizer), {}
        for n, prompt in prompts.items():
            head = rows.split_answer(prompt, "", self.tokenizer, form=form)[0]
            after = rows.closing_ids(prompt, "", self.tokenizer, closing=closing, form=form)
            due[n] = Open(prompt, head, after, after, closing is not None)
        if closing is None:
            asked = {n: (prompt, "") for n, prompt in prompts.items()}
            turns.warn_of_unclosed(asked, self.tokenizer, form.turn)
        return answered(self.tracked, self.tokenizer, due, new_tokens, longest)
