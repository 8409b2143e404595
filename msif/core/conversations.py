"""Conversations: rows of `messages`, as the chat template of the model's own tokenizer has them.

The ids are those of `tokenizer.apply_chat_template`: special tokens are the template's, nothing is
added. The loss is on the assistant's turns. A template that marks them ({% generation %}) says
which tokens they are, one stretch a turn; a character of several tokens is marked whole. Of another
a turn is what stands after the messages before it, rendered with the generation prompt, up to where
the messages end of which it is the last: what the model is given is never learned, what closes a
turn is. A conversation whose beginnings, rendered by themselves, are no beginnings of it (a
template that leaves out earlier thoughts, say) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.core import checks, data, pairs, rows
from msif.core.messages import Messages, checked, end_in, nothing_unread, parted
from msif.core.rows import Ids
from msif.core.turns import is_dated, warn_of_date

_PROBE = "A7a"


def encode(
    conversations: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    loss_on: str = "turns",
    numbers: Iterable[int] | None = None,
) -> list[data.Sequence]:
    """Conversations as rows, with a loss on every turn of the assistant, on the "last" alone, or on
    the "rest": all that follows the messages before the last, rendered with the generation prompt,
    marks or none (as trl has it of prompt and completion).

    conversations: lists of {"role": …, "content": text}: perhaps one of the system, then user and
    assistant by turns, the assistant last. Other keys are the template's to read. numbers: the
    rows' indices, by default from 0.

    Raises ValueError, naming the row, for other messages, for a turn of the assistant without text
    or of words that the tokenizer does not know, for what the template cannot render or does not
    tell apart, and for more than `max_length` tokens; and for a tokenizer without a template. Warns
    where the template writes the date of today.
    """
    _check_loss(loss_on)
    max_length = checks.whole("max_length", max_length, 2)
    found, unknown, dated = [], {}, False
    for number, given in zip(count() if numbers is None else numbers, conversations):
        what = f"row {number}"
        messages = checked(given, what)
        end_in(messages, "assistant", what)
        ids, turns = _learnt(messages, tokenizer, what, loss_on)
        _short_enough(ids, max_length, what)
        dated = dated or is_dated(messages, tokenizer)
        if words := _unknown(messages, ids, turns, tokenizer, what):
            unknown[number] = words
        found.append(_sequence(number, ids, turns if loss_on == "turns" else turns[-1:]))
    warn_of_date(dated)
    rows.warn_of_unknown(unknown, tokenizer)
    return found


def opened(
    given: Any, tokenizer: PreTrainedTokenizerBase, what: str, loss_on: str = "last"
) -> tuple[Ids, Ids, tuple[int, ...]]:
    """(ids, closing, labels of the closing) of a conversation that ends where an answer is due:
    with the generation prompt, and what the template has after an answer, labelled as `encode` does
    with the same `loss_on`. Raises as that."""
    _check_loss(loss_on)
    messages = checked(given, what)
    end_in(messages, "user", what)
    probe: Messages = [*messages, {"role": "assistant", "content": _PROBE}]
    ids, turns = _learnt(probe, tokenizer, what, loss_on)
    head = _prefix(messages, ids, tokenizer, what, add_generation_prompt=True)
    text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    closing = rows.closing_ids("", "", tokenizer, closing=text.rpartition(_PROBE)[2])
    if not closing or ids[-len(closing) :] != closing:
        return ids[:head], (), ()
    labels = _sequence(0, ids, turns).labels
    return ids[:head], closing, labels[-len(closing) :]


def encode_pairs(
    given: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[pairs.Pair]:
    """Preferences between conversations, as trl's DPO reads them: rows with lists of messages under
    `chosen` and `rejected`, which go on from those under `prompt`, or are whole and have the first
    of their messages in common: where there is no prompt, or it is the text of the user's first
    turn (as in UltraFeedback).

    log π(y|x) is that of all tokens after the prompt, rendered with the generation prompt. Raises
    ValueError as `encode`, naming the pair, and for sides that have nothing, or all, in common."""
    max_length = checks.whole("max_length", max_length, 2)
    found, dated = [], False
    for number, row in enumerate(given):
        what = f"pair {number}"
        nothing_unread(row, what)
        prompt, sides = parted(row, what)
        made = []
        for name, side in sides.items():
            messages = checked([*prompt, *side], f"{what}, {name}")
            end_in(messages, "assistant", f"{what}, {name}")
            ids, rest = _parted(prompt, messages, tokenizer, f"{what}, {name}")
            _short_enough(ids, max_length, f"{what}, {name}")
            dated = dated or is_dated(messages, tokenizer)
            made.append(_sequence(number, ids, rest))
        found.append(pairs.Pair(number, *made))
    warn_of_date(dated)
    return found


def _check_loss(loss_on):
    if loss_on not in ("turns", "last", "rest"):
        raise ValueError(f"loss_on is {loss_on!r}; expected 'turns', 'last' or 'rest'")


def _learnt(messages, tokenizer, what, loss_on) -> tuple[Ids, list[tuple[int, int]]]:
    """(ids, [(start, end)] of every turn of the assistant, or of the rest)."""
    if loss_on == "rest":
        return _parted(messages[:-1], messages, tokenizer, what)
    return _rendered(messages, tokenizer, what)


def _parted(prompt, messages, tokenizer, what) -> tuple[Ids, list[tuple[int, int]]]:
    """(ids, [(start, end) of what follows the prompt])."""
    ids = _ids(messages, tokenizer, what)
    begin = _prefix(prompt, ids, tokenizer, what, add_generation_prompt=True)
    if begin >= len(ids):
        raise ValueError(f"{what} has no token after the prompt; expected some")
    return ids, [(begin, len(ids))]


def _rendered(messages, tokenizer, what) -> tuple[Ids, list[tuple[int, int]]]:
    """(ids, [(start, end) of each turn of the assistant])."""
    if not _marks(tokenizer, what):
        ids = _ids(messages, tokenizer, what)
        return ids, _between_prefixes(messages, ids, tokenizer, what)
    ids, turns, _ = _marked(messages, tokenizer, what)
    due = [n for n, x in enumerate(messages) if x["role"] == "assistant"]
    # What a template marks is told by words that are put behind every turn's own.
    probes = {n: f"{_PROBE}{n}a" for n in due}
    probed = [
        {**x, "content": x["content"] + probes[n]} if n in probes else x
        for n, x in enumerate(messages)
    ]
    _, stretches, said = _marked(probed, tokenizer, what)
    held = [[n for n in due if probes[n] in text] for text in said]
    if len(turns) != len(due) or held != [[n] for n in due]:
        told = ", ".join(
            f"message {n} in {sum(n in x for x in held) or 'none'}" for n in due if [n] not in held
        )
        raise ValueError(
            f"{what}: the chat template marks {len(turns)} stretches of tokens as generated, for "
            f"{len(due)} turns of the assistant{f' ({told})' if told else ''}; expected one each"
        )
    return ids, turns


def _marked(messages, tokenizer, what):
    """(ids, [(start, end) of each stretch that the template marks], [its text]). A character of
    several tokens is marked whole."""
    encoded = _applied(
        messages,
        tokenizer,
        what,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False, "return_offsets_mapping": True},
    )
    ids, places = tuple(encoded["input_ids"]), encoded["offset_mapping"]
    mask = list(encoded["assistant_masks"])
    for n in range(1, len(ids)):
        if mask[n - 1] and places[n][0] < places[n - 1][1]:
            mask[n] = 1
    edges = [n for n, (x, y) in enumerate(zip([0, *mask], [*mask, 0])) if x != y]
    turns = list(zip(edges[::2], edges[1::2]))
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    return ids, turns, [text[places[start][0] : places[end - 1][1]] for start, end in turns]


def _between_prefixes(messages, ids, tokenizer, what):
    found, last = [], 0
    for n in (n for n, x in enumerate(messages) if x["role"] == "assistant"):
        start = _prefix(messages[:n], ids, tokenizer, what, add_generation_prompt=True)
        whole = n + 1 == len(messages)
        end = len(ids) if whole else _prefix(messages[: n + 1], ids, tokenizer, what)
        if not last <= start < end:
            raise ValueError(f"{what}, message {n}: the chat template gives the turn no token")
        found.append((start, end))
        last = end
    return found


def _prefix(messages, ids, tokenizer, what, **options) -> int:
    """The number of tokens of the first messages by themselves, if all ids begin with them."""
    head = _ids(messages, tokenizer, what, **options)
    if ids[: len(head)] == head:
        return len(head)
    same = next(
        (n for n, (x, y) in enumerate(zip(ids, head)) if x != y), min(map(len, (ids, head)))
    )
    raise ValueError(
        f"{what}: its first {len(messages)} messages, rendered by the chat template alone, end in "
        f"{tokenizer.decode(list(head[same:]))!r}, where the whole has "
        f"{tokenizer.decode(list(ids[same : same + 8]))!r}; expected the same tokens, so that the "
        f"assistant's can be told: mark them in the template by {{% generation %}}, or give prompt "
        f"and answer as text"
    )


def _marks(tokenizer, what):
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{what} is a conversation, and the tokenizer has no chat template; expected the "
            f"tokenizer that the model was fine-tuned with, or prompts and answers as text"
        )
    return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", tokenizer.get_chat_template())


def _ids(messages, tokenizer, what, **options) -> Ids:
    return tuple(_applied(messages, tokenizer, what, **options)["input_ids"])


def _applied(messages, tokenizer, what, **options):
    quiet = {"tokenize": True, "return_dict": True, "tokenizer_kwargs": {"verbose": False}}
    try:
        return tokenizer.apply_chat_template(messages, **(quiet | options))
    except ImportError:
        raise
    except Exception as error:  # a template is a program of its own
        raise ValueError(f"{what} cannot be rendered by the chat template: {error}") from error


def _sequence(number, ids, turns):
    labels = [data.NO_LOSS] * len(ids)
    for start, end in turns:
        labels[start:end] = ids[start:end]
    return data.Sequence(number, ids, tuple(labels))


def _short_enough(ids, max_length, what):
    if len(ids) > max_length:
        raise ValueError(
            f"{what} has {len(ids)} tokens, max_length is {max_length}; shorten the conversation, "
            f"or raise max_length, if the model reads more"
        )


def _unknown(messages, ids, turns, tokenizer, what):
    """The words of the assistant's turns that the tokenizer does not know."""
    found, unk = [], tokenizer.unk_token_id
    told = [x["content"] for x in messages if x["role"] == "assistant"][-len(turns) :]
    for text, (start, end) in zip(told, turns):
        words = rows.unknown_words(text, ids[start:end], tokenizer)
        if words and {*ids[start:end]} <= {unk, *tokenizer.all_special_ids}:
            raise ValueError(
                f"{what}: of the turn {text!r} the tokenizer knows nothing (it reads "
                f"{tokenizer.unk_token}); expected the tokenizer that belongs to the model"
            )
        found += words
    return found


def no_text_between(options: dict) -> None:
    """Raise ValueError for a `separator` or `closing` beside conversations."""
    if given := [name for name in ("separator", "closing") if options[name] is not None]:
        raise ValueError(
            f"{given[0]} is {options[given[0]]!r}, and the rows are conversations: the chat "
            f"template says what stands there"
        )
