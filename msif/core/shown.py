"""A sequence as a table of its tokens, to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from msif.core.rows import words

if TYPE_CHECKING:
    from msif.core.data import Sequence


def row_table(sequence: Sequence, tokenizer: PreTrainedTokenizerBase) -> str:
    """A sequence token by token, to read: position, id, text, and the label to be predicted there
    from all tokens before, "–" where there is none. A class stands in a line of its own.
    """
    labels = sequence.labels
    classed = isinstance(labels, int)
    each = (-100,) * len(sequence.input_ids) if isinstance(labels, int) else labels
    lines = [f"{'':>5} {'id':>7}  {'token':24} label"]
    pieces = words(tokenizer, sequence.input_ids)
    for n, (token, piece, label) in enumerate(zip(sequence.input_ids, pieces, each, strict=True)):
        shown = repr(piece if label == token else tokenizer.decode([label])) if label >= 0 else "–"
        lines.append(f"{n:>5} {token:>7}  {piece!r:24} {shown if n else '–'}")
    return "\n".join(lines + [f"class {labels}"] * classed)
