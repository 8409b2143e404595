"""The forms in which rows of a prompt and an answer come, from a file or as they are given.

A row has a prompt and an answer as text; or both as messages, as trl's prompt and completion; or is
a whole conversation, as `messages`. `completion` is another name of the column `answer`. All rows
are of the first one's form. What could be read in two ways is refused, naming the row: which of
them was trained on cannot be told.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from msif.core import checks, messages, sources
from msif.core.messages import COLUMN, UNREAD, Messages

ANSWER, COMPLETION = "answer", "completion"
Texts = list[tuple[str, str | None]]  # prompts with their answers


@dataclass(frozen=True)
class Chats:
    """Conversations, and what of them has a loss, as `conversations.encode` takes it: every turn of
    the assistant ("turns"); of a prompt and its answer all that follows the prompt ("rest").
    """

    conversations: list[Messages]
    loss: str


def read(
    given: Sequence[Any] | str | Path,
    columns: tuple[str, str],
    limit: int | None = None,
    due: bool = True,
) -> Texts | Chats | None:
    """The rows of a source (`data.load_texts` says of which) or of a list; None for a list of what
    are neither rows nor conversations.

    columns: names of prompt and answer. due: must every row have an answer? Raises as
    `data.load_rows`, and ValueError, naming the row, for one of another form than the first, with
    two answers, with messages beside an answer or beside another prompt, and for messages that are
    no prompt with one answer of the assistant."""
    limit = None if limit is None else checks.whole("limit", limit)
    found: list[Any]
    if isinstance(given, str | Path):
        wanted, what = [COLUMN, columns[0], *_answers(columns), *UNREAD], f"{given}, row"
        found = list(islice(sources.Rows(str(given), wanted), limit))
        if not found:
            raise ValueError(f"{given} is empty; expected at least one row")
    else:
        found, what = list(islice(given, limit)), "row"
        row = bool(found) and isinstance(found[0], Mapping) and "role" not in found[0]
        if not row or not {COLUMN, columns[0]} & set(found[0]):
            chats = messages.among(found)
            return None if chats is None else Chats(chats, "turns")
    forms = [_form(x, columns, f"{what} {n}") for n, x in enumerate(found)]
    if odd := next((n for n, form in enumerate(forms) if form != forms[0] and form), None):
        raise ValueError(
            f"{what} {odd} has {_FORMS[forms[odd]]}, row 0 {_FORMS[forms[0]]}; expected rows of "
            f"one form"
        )
    if forms and forms[0] == "messages":
        chats = messages.among(found, what)
        return None if chats is None else Chats(chats, "turns")
    if forms and forms[0] == "parts":
        return Chats([_joined(x, columns, due, f"{what} {n}") for n, x in enumerate(found)], "rest")
    return [_text(x, columns, due, f"{what} {n}") for n, x in enumerate(found)]


_FORMS = {
    "messages": f"{COLUMN!r}",
    "parts": "a prompt of messages",
    "text": "a prompt of text",
    "": "no prompt",
}


def _answers(columns):
    """The columns that an answer may be in."""
    return [columns[1], COMPLETION] if columns[1] == ANSWER else [columns[1]]


def _form(row, columns, what):
    """The form of one row, "" where there is none. ValueError for two in one."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{what} is {reprlib.repr(row)}; expected a row as the first one is")
    prompt, told = columns[0], [x for x in _answers(columns) if row.get(x) is not None]
    if len(told) > 1:
        raise ValueError(
            f"{what} has {told[0]!r} and {told[1]!r}, and which of them was trained on cannot be "
            f"told; expected one: drop the other"
        )
    if row.get(COLUMN) is not None:
        if told:
            raise ValueError(
                f"{what} has {COLUMN!r} and {told[0]!r}, and which of them was trained on cannot "
                f"be told; expected one: drop {COLUMN!r}, to read {prompt!r} and {told[0]!r}, or "
                f"drop {told[0]!r}, to read the conversation"
            )
        if (beside := row.get(prompt)) is not None:
            whole = messages.checked(row[COLUMN], what)
            beside = beside if isinstance(beside, str) else reprlib.repr(beside)
            messages.asked_first(beside, whole, f"{what} ({COLUMN!r} beside {prompt!r})")
        return "messages"
    if row.get(prompt) is None:
        return ""
    return "parts" if isinstance(row[prompt], list | tuple) else "text"


def _joined(row, columns, due, what):
    """The conversation of a row whose prompt and answer are messages."""
    messages.nothing_unread(row, what)
    _with_prompt(row, columns, what)
    prompt = messages.checked(row[columns[0]], f"{what}, {columns[0]}")
    messages.end_in(prompt, "user", f"{what}, {columns[0]}")
    name, answer = _answer(row, columns, due, what)
    if answer is None and not due:
        return prompt
    one = isinstance(answer, list | tuple) and len(answer) == 1 and isinstance(answer[0], Mapping)
    if not one or answer[0].get("role") != "assistant":
        raise ValueError(
            f"{what}: {name} is {reprlib.repr(answer)}; expected a list of one message of the "
            f"assistant, as {columns[0]} is a list of messages"
        )
    return messages.checked([*prompt, *answer], what)


def _text(row, columns, due, what):
    """(prompt, answer) of a row of texts."""
    _with_prompt(row, columns, what)
    prompt = checks.text(f"{what}: {columns[0]!r}", row[columns[0]])
    name, answer = _answer(row, columns, due, what)
    return prompt, checks.text(f"{what}: {name!r}", answer) if due or answer is not None else None


def _with_prompt(row, columns, what):
    if columns[0] not in row:
        raise ValueError(f"{what} has no column {columns[0]!r}; its columns are {_names(row)}")


def _answer(row, columns, due, what):
    """(its column, the answer of a row)."""
    names = _answers(columns)
    if due and not set(names) & set(row):
        raise ValueError(
            f"{what} has no column {' or '.join(map(repr, names))}; its columns are {_names(row)}"
        )
    there = [x for x in names if row.get(x) is not None] or [x for x in names if x in row] or names
    return there[0], row.get(there[0])


def _names(row):
    return ", ".join(sorted(map(str, row)))
