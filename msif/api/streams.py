"""A corpus that memory does not hold."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.core import data, sources
from msif.scale import streaming

State = tuple[tuple[str, int, int], ...]  # name, size and time of change of each file


@dataclass(frozen=True)
class Stream:
    """Documents that are read and tokenised anew each time they are gone through."""

    texts: Iterable[str] | str | Path
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    column: str = "text"
    limit: int | None = None
    made_of: State | None = None  # of its files, when the stream was made

    def __iter__(self) -> Iterator[data.Sequence]:
        texts = self.texts
        if self.made_of != file_state(texts):
            raise ValueError(f"{texts} has changed since this stream was made of it: make it anew")
        if isinstance(texts, str | Path):
            texts = data.load_texts(texts, self.column, streaming=True, limit=self.limit)
        return streaming.tokenised(islice(texts, self.limit), self.tokenizer, self.max_length)


def file_state(texts: Any) -> State | None:
    """Name, size and time of change of each file that texts are read from; None for no path and
    what is not there."""
    if not isinstance(texts, str | Path) or not Path(texts).exists():
        return None
    with warnings.catch_warnings(action="ignore"):  # of files left out; who reads them has warned
        files = sources.files_of(Path(texts))
    return tuple((str(x), x.stat().st_size, x.stat().st_mtime_ns) for x in files)


def kept_apart(texts: Any) -> Any:
    """A list as it is now; other iterables start anew by themselves."""
    return tuple(texts) if isinstance(texts, list) else texts
