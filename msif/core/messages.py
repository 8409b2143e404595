"""Messages: what a conversation is, and where it is read from."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from msif.core import checks, sources

Messages = list[dict[str, Any]]
COLUMN = "messages"
PREFERENCE = ("prompt", "chosen", "rejected")
# Keys of a turn by which trainers leave it out, and those by which they weigh its loss.
UNLEARNT = ("train", "training", "trainable", "learn", "loss")
WEIGHTS = ("weight", "loss_weight")
UNREAD = ("tools", "chat_template_kwargs")  # columns that would change how a row is rendered


def preferences(given: Iterable[Any] | str | Path, limit: int | None = None) -> list[Any]:
    """Rows with chosen and rejected, perhaps a prompt, that are given or are those of a source.
    Raises ValueError, naming the row, for others; and as `data.load_rows` for a source."""
    local = isinstance(given, str | Path)
    what = f"{given}, row" if local else "pair"
    rows = (
        sources.Rows(str(given), [*PREFERENCE, *UNREAD]) if local else checks.several("pair", given)
    )
    found = list(islice(rows, _limit(limit)))
    for number, row in enumerate(found):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{what} {number} is {reprlib.repr(row)}; expected a row with "
                f"{', '.join(PREFERENCE)}"
            )
        if missing := [x for x in PREFERENCE[1:] if row.get(x) is None]:
            raise ValueError(
                f"{what} {number} has no {missing[0]!r}; its columns are "
                f"{', '.join(sorted(map(str, row)))}"
            )
        texts = all(isinstance(row[x], str) for x in PREFERENCE[1:])
        if texts and not isinstance(row.get("prompt"), str):
            raise ValueError(
                f"{what} {number}: prompt is {reprlib.repr(row.get('prompt'))}, and chosen and "
                f"rejected are text; expected all three as text, or all as lists of messages"
            )
    if not found:
        raise ValueError(f"{given} is empty; expected at least one row")
    return found


def among(given: Sequence[Any], what: str = "row") -> list[Any] | None:
    """The conversations of a list: of rows with `messages`, or of lists of messages; None for a
    list whose first item is none. Raises ValueError, naming the row, where others are not."""
    if not given or not _is_conversation(given[0]):
        return None
    found = []
    for n, x in enumerate(given):
        if isinstance(x, Mapping):
            if "role" in x and COLUMN not in x:
                raise ValueError(
                    f"{what} {n} is one message, {reprlib.repr(dict(x))}; expected a list of "
                    f"conversations, each a list of messages"
                )
            if x.get(COLUMN) is None:
                raise ValueError(
                    f"{what} {n} has no {COLUMN!r}; its keys are {', '.join(sorted(map(str, x)))}"
                )
            nothing_unread(x, f"{what} {n}")
            x = x[COLUMN]
        found.append(x)
    return found


def checked(given: Any, what: str) -> Messages:
    """The messages as dicts, without the keys that have no value (as a table fills them in).

    Raises ValueError, naming `what`, for anything but {"role": …, "content": text} of user and
    assistant by turns, perhaps after one of the system; and where the assistant says nothing."""
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(
            f"{what} is {reprlib.repr(given)}; expected a list of messages, each with a role and "
            f"a content"
        )
    found = []
    for n, x in enumerate(given):
        if not isinstance(x, Mapping) or not {"role", "content"} <= set(x):
            raise ValueError(
                f"{what}, message {n} is {reprlib.repr(x)}; expected {{'role': …, 'content': …}}"
            )
        checks.text(f"{what}, message {n}: the role", x["role"])
        checks.text(f"{what}, message {n}: the content", x["content"])
        if x["role"] == "assistant" and (key := _unlearnt(x)):
            raise ValueError(
                f"{what}, message {n} has {key!r}: {x[key]!r}; turns that training left out, or "
                f"weighed, are not read: expected a loss on every turn of the assistant, of weight "
                f"1 (leave the key out if that is so, and the row if not)"
            )
        if x["role"] == "assistant" and not x["content"].strip():
            raise ValueError(f"{what}, message {n}: the assistant says nothing; expected some text")
        found.append({key: value for key, value in x.items() if value is not None})
    roles = [x["role"] for x in found]
    turns = roles[roles[0] == "system" :]
    if not turns or turns != [*islice(cycle(("user", "assistant")), len(turns))]:
        raise ValueError(
            f"{what} has the roles {', '.join(roles)}; expected user and assistant by turns, "
            f"perhaps after one system"
        )
    return found


def is_open(given: Any) -> bool:
    """Does a conversation end where an answer of the assistant is due?"""
    last = given[-1] if isinstance(given, list | tuple) and given else None
    return isinstance(last, Mapping) and last.get("role") == "user"


def end_in(messages: Messages, role: str, what: str) -> None:
    """ValueError, naming `what`, unless the last turn is that role's."""
    if (last := messages[-1]["role"]) != role:
        due = "whose turn has the loss" if role == "assistant" else "to be answered"
        raise ValueError(f"{what} ends with the {last}'s turn; expected the {role}'s, {due}")


def parted(row: Mapping[str, Any], what: str) -> tuple[Messages, dict[str, Sequence[Any]]]:
    """(messages of the prompt, {"chosen" or "rejected": messages after it}) of a preference, whose
    sides go on from messages of a prompt, or are whole and begin alike: then a prompt of text, if
    there is one, is the user's first turn. Raises ValueError as `checked`, and for sides that begin
    with another turn than that, saying where they differ."""
    sides: dict[str, Any] = {name: row.get(name) for name in PREFERENCE[1:]}
    for name, side in sides.items():
        if not isinstance(side, list | tuple) or not side:
            raise ValueError(
                f"{what}: {name} is {reprlib.repr(side)}; expected a list of messages on both sides"
            )
    prompt = row.get("prompt")
    if prompt is None or isinstance(prompt, str):
        whole = {name: checked(side, f"{what}, {name}") for name, side in sides.items()}
        if isinstance(prompt, str):
            for name, side in whole.items():
                asked_first(prompt, side, f"{what}, {name}")
        shared = next((n for n, (x, y) in enumerate(zip(*whole.values())) if x != y), None)
        if not shared:
            raise ValueError(
                f"{what} has no prompt of messages, and chosen and rejected have "
                f"{'one of them whole' if shared is None else 'no message'} in common; expected "
                f"two conversations that begin alike"
            )
        prompt = sides["chosen"][:shared]
        sides = {name: side[shared:] for name, side in sides.items()}
    prompt = checked(prompt, f"{what}, prompt")
    end_in(prompt, "user", f"{what}, prompt")
    return prompt, sides


def asked_first(prompt: str, messages: Messages, what: str) -> None:
    """ValueError, naming `what` and where they differ, unless the prompt is the first turn of the
    user."""
    first = next(x["content"] for x in messages if x["role"] == "user")
    if first == prompt:
        return
    least = min(len(first), len(prompt))
    at = next((n for n in range(least) if first[n] != prompt[n]), least)
    turn, given = (reprlib.repr(x[at:]) for x in (first, prompt))
    raise ValueError(
        f"{what}: the user's first turn is not the prompt: from character {at} on it has {turn}, "
        f"the prompt {given}; expected equal texts, or rows without a prompt"
    )


def nothing_unread(row: Mapping[str, Any], what: str) -> None:
    """ValueError for a row with a column that would change how it is rendered."""
    if odd := [x for x in UNREAD if row.get(x)]:
        raise ValueError(
            f"{what} has {odd[0]!r}, with which the chat template would render it otherwise; "
            f"expected rows without"
        )


def _unlearnt(message):
    """The key by which a turn has no loss, or another than its own; None if there is none."""
    given = {key: x for key, x in message.items() if x is not None}
    left = [key for key in UNLEARNT if key in given and _says_no(given[key])]
    left += [key for key in WEIGHTS if given.get(key, 1) != 1]
    return left[0] if left else None


def _says_no(x):
    return x.strip().lower() in ("false", "no", "0") if isinstance(x, str) else x in (0, False)


def _limit(limit):
    return None if limit is None else checks.whole("limit", limit)


def _is_conversation(x):
    first = x[0] if isinstance(x, list | tuple) and x else x
    return isinstance(first, Mapping) and (x is not first or bool({COLUMN, "role"} & set(x)))
