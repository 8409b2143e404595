"""Texts and rows of a file, a folder or a hub data set, each numbered as its source numbers it.

Local files are read as they are at this moment: no pattern is expanded, no cache is kept, nothing
is guessed from a value (a date stays the text that it is).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from msif.core import checks
from msif.core.extras import need
from msif.core.formats import FORMATS, Row, reader, suffix

# Data in formats that are not read: a folder with them would be read in part.
_OTHERS = {".arrow", ".csv", ".tsv", ".xml", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"}
_OTHERS |= {".ndjson", ".jsonlines", ".jl", ".feather", ".orc", ".avro", ".tgz", ".lz4", ".7z"}
_OTHERS |= {".rar", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".part"}
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def load_texts(
    source: str | Path,
    column: str = "text",
    split: str = "train",
    streaming: bool = False,
    limit: int | None = None,
    revision: str | None = None,
) -> list[str] | Iterator[str]:
    """The texts of a file, a folder or a hub data set, one a row: text number n is that of row n,
    from 0, also where it is blank.

    source: a .jsonl, .json, .parquet or .txt file (UTF-8; in .txt one text a line, ended by a line
    feed, a carriage return or both, and by nothing else); a folder of such files of one format,
    read in the order of their names, without those that are named after another split; or the id of
    a data set on the hub.
    Gives a list, or with `streaming` an iterator that never holds the corpus; of the first `limit`
    rows. Raises FileNotFoundError for a path that is not there and ValueError for a limit below 1,
    an unknown format or a folder of several, what cannot be read (naming file and line), a corpus
    without any text, a missing column (naming those there are) and a value that is not text (naming
    its row).
    """
    if limit is not None:
        limit = checks.whole("limit", limit)
    rows = Rows(str(source), [column], split, streaming, revision)

    def texts():
        for number, row in enumerate(islice(rows, limit)):
            yield _value(source, number, row, column)

    if not any(text.strip() for text in texts()):
        raise ValueError(f"{source} ({split}) is empty; expected at least one text")
    return texts() if streaming else list(texts())


def load_rows(
    source: str | Path,
    columns: Collection[str],
    optional: Collection[str] = (),
    split: str = "train",
    limit: int | None = None,
    revision: str | None = None,
) -> list[dict[str, str | None]]:
    """Rows of several columns together, as a file, a folder or a hub data set has them, none left
    out: [{column: text, or None where an optional one has none}].

    Raises as `load_texts`, for a missing column of `columns` and a value there that is not text.
    """
    if limit is not None:
        limit = checks.whole("limit", limit)
    found: list[dict[str, str | None]] = []
    rows = Rows(str(source), [*columns, *optional], split, False, revision)
    for number, row in enumerate(islice(rows, limit)):
        values = {column: _value(source, number, row, column) for column in columns}
        for column in optional:
            none = row.get(column) is None
            values[column] = None if none else _value(source, number, row, column)
        found.append(values)
    if not found:
        raise ValueError(f"{source} ({split}) is empty; expected at least one row")
    return found


def _value(source, number, row, column):
    if column not in row:
        there = ", ".join(sorted(map(str, row)))
        raise ValueError(
            f"{source} has no column {column!r}; its columns are {there}"
            + f" (in row {number})" * (number > 0)
        )
    return checks.text(f"{source}, row {number}: {column!r}", row[column])


class Rows:
    """The rows of a source, read anew each time they are gone through.

    wanted: the columns that will be looked at; a row may have others too."""

    def __init__(self, source, wanted, split="train", streaming=False, revision=None):
        path = Path(source)
        named = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
        if path.exists():
            files = files_of(path, split)
            self.parts = [partial(reader(file), file, wanted) for file in files]
        elif named or suffix(path) in FORMATS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
            raise FileNotFoundError(
                f"{source} does not exist; expected a file, a folder or a dataset's hub id"
            )
        else:
            self.parts = [_hub(source, split, streaming, revision)]

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part()


def files_of(source: Path, split: str = "train") -> list[Path]:
    """The files that a local source is read from: itself, or those of a folder that belong to a
    split by their names, sorted. Warns of those of other splits, where none has been asked for."""
    return [source] if source.is_file() else _files(source, split)


def _files(folder, split):
    inside = {path.relative_to(folder): path for path in sorted(_inside(folder))}
    inside = {
        name: path
        for name, path in inside.items()
        if not any(part.startswith((".", "__")) for part in name.parts)
    }
    if broken := [path for path in inside.values() if not path.exists()]:
        raise FileNotFoundError(
            f"{broken[0]} is a link to {broken[0].readlink()}, which is not there: mend or remove "
            f"it"
        )
    inside = {name: path for name, path in inside.items() if path.is_file()}
    if len(configs := _configs(folder)) > 1:
        raise ValueError(
            f"{folder} has several configurations ({', '.join(configs)}); expected the folder or "
            f"file of one of them"
        )
    kinds = {FORMATS.get(suffix(name)) for name in inside} - {None}
    unread = {suffix(name) for name in inside} & _OTHERS
    if len(kinds) + len(unread) > 1:
        there = sorted({suffix(name) for name in inside if suffix(name) in {*FORMATS, *unread}})
        raise ValueError(
            f"{folder} has files of several formats ({', '.join(there)}); expected one of "
            f"{', '.join(FORMATS)}: name one of the files, or keep one format in a folder"
        )
    found = {name: path for name, path in inside.items() if suffix(name) in FORMATS}
    if not found:
        raise FileNotFoundError(
            f"{folder} doesn't contain any data files; expected {', '.join(FORMATS)}"
        )
    splits = {name: _split_of(name, split) for name in found}
    if split not in splits.values():
        raise ValueError(
            f"{folder} has no split {split!r}; by the names of its files, there are "
            f"{', '.join(sorted(set(splits.values())))}"
        )
    others = [str(name) for name in found if splits[name] != split]
    if others and split == "train":  # as it is, where nobody has asked for a split
        warnings.warn(
            f"{folder}: {len(others)} of {len(found)} files are of other splits by their names, "
            f"and not read ({', '.join(others[:3])}{', …' * (len(others) > 3)}); rename them, or "
            f"name a file itself, to read them",
            stacklevel=2,
        )
    return [path for name, path in found.items() if splits[name] == split]


def _inside(folder):
    """All files below a folder, those of linked folders too; ValueError for links in a circle."""
    for place, folders, names in os.walk(folder, followlinks=True):
        for linked in (Path(place, name) for name in folders if Path(place, name).is_symlink()):
            if linked.resolve() in {x.resolve() for x in linked.parents}:
                raise ValueError(f"{linked} is a link to a folder that it lies in: remove it")
        yield from (Path(place, name) for name in names)


def _split_of(name, asked):
    """The split that a file is named after; "train" if none."""
    words = set(re.split(r"[\W_]+", name.as_posix().lower()))
    if asked not in _SPLITS and asked.lower() in words:
        return asked
    return next((split for split, names in _SPLITS.items() if names & words), "train")


def _configs(folder):
    card = folder / "README.md"
    said = card.read_text("utf-8", "replace") if card.is_file() else ""
    named = re.findall(r"^\s*-?\s*config_name:\s*(\S+)", said.partition("\n---")[0], re.M)
    return list(dict.fromkeys(named))


def _hub(source, split, streaming, revision):
    """A function that gives the rows of a hub data set."""
    datasets = need("datasets")
    wrong = (datasets.exceptions.DatasetsError, ValueError)

    def refused(error):
        return ValueError(f"{source} ({split}) cannot be read: {error.__cause__ or error}")

    try:
        found = datasets.load_dataset(source, split=split, streaming=streaming, revision=revision)
    except wrong as error:
        raise refused(error) from error

    def rows():
        places = iter(found)
        while True:
            try:
                row = next(places)
            except StopIteration:
                return
            except wrong as error:
                raise refused(error) from error
            yield row

    return rows
