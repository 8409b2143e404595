"""A corpus that memory does not hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from msif.core import data
from msif.scale import streaming


@dataclass(frozen=True)
class Stream:
    """Documents that are read and tokenised anew each time they are gone through."""

    texts: Iterable[str] | str | Path
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    column: str = "text"
    limit: int | None = None
    made_of: tuple[int, int] | None = None  # size and time of a file, when the stream was made

    def __iter__(self) -> Iterator[data.Sequence]:
        texts = self.texts
        if self.made_of != file_state(texts):
            raise ValueError(f"{texts} has changed since this stream was made of it: make it anew")
        if isinstance(texts, str | Path):
            texts = data.load_texts(texts, self.column, streaming=True, limit=self.limit)
        return streaming.tokenised(islice(texts, self.limit), self.tokenizer, self.max_length)


def file_state(texts: Any) -> tuple[int, int] | None:
    """Size and time of change of a file; None for anything else."""
    if not isinstance(texts, str | Path) or not Path(texts).is_file():
        return None
    found = Path(texts).stat()
    return found.st_size, found.st_mtime_ns


def kept_apart(texts: Any) -> Any:
    """A list as it is now; other iterables start anew by themselves."""
    return tuple(texts) if isinstance(texts, list) else texts
