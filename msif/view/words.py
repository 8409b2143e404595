"""The words of texts and of token sequences, as the explorer's page shows them."""

import re

from msif.core.data import NO_LOSS, Sequence
from msif.core.pairs import Pair
from msif.core.rows import words as words

# Controls but tab and newline, formats that have no width or turn the order around, surrogates;
# as UNSEEN of explorer.html.
UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text):
    """The text with ⟨U+202E⟩, and so on, in place of what would be unseen or change its order."""
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


PREFERRED = "\n≻ "  # between what was chosen and what was rejected


def words_of(text, tokenizer):
    """The words of a text, of a `Sequence`, or of the two rows of a `Pair`."""
    if isinstance(text, str):
        return [text]
    if isinstance(text, Pair):
        chosen, rejected = (words_of(x, tokenizer) for x in (text.chosen, text.rejected))
        return [*chosen, PREFERRED, *rejected]
    if not isinstance(text, Sequence):
        raise ValueError(f"a text of type {type(text).__name__}: expected str or data.Sequence")
    if tokenizer is None:
        raise ValueError(
            "data.Sequence without tokenizer: give the one that made them, to have their words"
        )
    return words(tokenizer, text.input_ids)


def prompt_and_answer(query, tokenizer):
    """(prompt words, answer words): the answer is what carries a label, or the second of a pair."""
    if isinstance(query, Sequence):
        if isinstance(query.labels, int) or all(y == NO_LOSS for y in query.labels):
            raise ValueError(
                f"query {query.index} has no labelled token: "
                f"expected the answer's, see data.encode_answers"
            )
        split_at = next(t for t, y in enumerate(query.labels) if y != NO_LOSS)
        found = words_of(query, tokenizer)
        return found[:split_at], found[split_at:]
    if isinstance(query, str) or len(query) != 2:
        raise ValueError(f"query {query!r}: expected a pair (prompt, answer) or a data.Sequence")
    return [query[0]], [" " + query[1]]
