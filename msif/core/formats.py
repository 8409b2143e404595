"""The rows of one file: JSON, lines of text or parquet. Nothing is guessed from a value."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from msif.core.extras import need

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}

Row = dict[str, Any]


def suffix(path: Path) -> str:
    """The end of a file's name, in lower case."""
    return path.suffix.lower()


def reader(path: Path) -> Callable[[Path, Collection[str]], Iterator[Row]]:
    """What gives the rows of a file of its format; ValueError for another one, or nothing in it."""
    readers = {"json": _json, "parquet": _parquet, "text": _lines}
    if suffix(path) not in FORMATS:
        raise ValueError(f"{path} is not a known format; expected {', '.join(FORMATS)}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected at least one text")
    return readers[FORMATS[suffix(path)]]


def _text_lines(path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a file in UTF-8, a byte order mark left out."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 at character {error.start}; save the "
                    f"file in UTF-8"
                ) from error
            yield number, line.rstrip("\n")


def _lines(path, wanted) -> Iterator[Row]:
    return ({"text": line} for _, line in _text_lines(path))


def _json(path, wanted) -> Iterator[Row]:
    """The objects of a file: one a line, or of a .json file one list of them."""
    lines = _text_lines(path)
    if suffix(path) == ".json":
        first = next((line for _, line in lines if line.strip()), "")
        if first.lstrip().startswith("[") or first.strip() == "{":
            listed = _object(path, 1, "\n".join(line for _, line in _text_lines(path)), object)
            yield from _list(path, listed if isinstance(listed, list) else [listed])
            return
        lines = _text_lines(path)
    for number, line in lines:
        if line.strip():
            yield _object(path, number, line)


def _object(path, number, line, kind=dict):
    try:
        found = json.loads(line, object_pairs_hook=_distinct)
    except _Twice as error:
        raise ValueError(
            f"{path}, line {number} has the key {str(error)!r} twice; expected each once"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}, line {number} is not JSON ({error}); expected one whole object a line"
        ) from error
    if not isinstance(found, kind):
        raise ValueError(
            f"{path}, line {number} is {line.strip()[:60]!r}; expected an object, "
            f'such as {{"text": "…"}}'
        )
    return found


class _Twice(Exception):
    """A key of a JSON object."""


def _distinct(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n])))
    return found


def _list(path, rows):
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is {row!r}; expected an object")
        yield row


def _parquet(path, wanted) -> Iterator[Row]:
    pq, arrow = need("pyarrow.parquet"), need("pyarrow")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise ValueError(f"{path} has several columns {twice[0]!r}; expected one")
            all_there = set(wanted) <= set(names)
            columns = list(dict.fromkeys(wanted)) if all_there else None
            for batch in file.iter_batches(1024, columns=columns):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
