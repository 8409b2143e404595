"""What callers give, checked before any work: each error names the value and what was expected."""

import operator
import reprlib
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from os import PathLike
from typing import Any


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """`value` as an int, of numpy's too. ValueError, with the name, unless it is a whole number of
    at least `least` (None: of any sign): true, 2.5 and "8" are none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        bound = "" if least is None else f", at least {least}"
        raise ValueError(f"{name} is {value!r}; expected a whole number{bound}")
    return number


def seed(value: Any) -> int | str:
    """A seed as headers can hold it: a text, or a whole number. ValueError for another."""
    return value if isinstance(value, str) else whole("seed", value, None)


def text(what: str, value: Any) -> str:
    """`value`. ValueError, naming `what`, unless it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {reprlib.repr(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has {value[error.start]!r} at character {error.start}, half of a character "
            f"(a lone surrogate), which no tokenizer reads; mend the text or leave it out"
        ) from error
    return value


def texts(what: str, values: Iterable[Any]) -> list[str]:
    """The texts of a collection in its order. ValueError, naming `what` and the number, for what is
    not text; for one text in place of several, whose characters would be read; for what has no
    order of its own (a set) or more than texts (a mapping)."""
    return [text(f"{what} {number}", value) for number, value in enumerate(several(what, values))]


def several(what: str, values: Any) -> Iterable[Any]:
    """`values`, if they are a collection of texts by their type; ValueError if not."""
    wrong = str | bytes | PathLike | Mapping | Set
    if isinstance(values, wrong) or not isinstance(values, Iterable):
        raise ValueError(
            f"{reprlib.repr(values)} is of type {type(values).__name__}; expected a list of texts, "
            f"one for each {what}"
        )
    return values


def first(values: Iterable, limit: int | None) -> list:
    """The first `limit` values, all of them for None. Raises for what is no whole number."""
    return list(islice(values, None if limit is None else whole("limit", limit)))
