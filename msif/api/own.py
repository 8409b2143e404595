"""The answers that a model itself gives."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from msif.core import checks, data
from msif.core.generation import greedy
from msif.core.layers import Tracked


@dataclass(frozen=True)
class Open:
    """Where an answer is due.

    asked: as an error shows it. head: its ids. closing: what stands after an answer that the model
    ends; labels: those of it. always: does it stand there whatever the model ends with?
    """

    asked: str
    head: tuple[int, ...]
    closing: tuple[int, ...]
    labels: tuple[int, ...]
    always: bool = False


def answered(
    tracked: Tracked,
    tokenizer: PreTrainedTokenizerBase,
    due: Mapping[int, Open],
    new_tokens: int,
    longest: int,
) -> dict[int, data.Sequence]:
    """{number: the prompt with the model's own greedy answer}, up to its end-of-sequence token or
    `new_tokens` tokens; ValueError for prompts that leave no room in `longest` tokens, and for a
    model that answers nothing."""
    new_tokens = checks.whole("new_tokens", new_tokens)
    for n, x in due.items():
        if not 0 < len(x.head) <= (room := longest - new_tokens - len(x.closing)):
            raise ValueError(
                f"row {n} has a prompt of {len(x.head)} tokens: expected 1 to {room}, to leave "
                f"room for {new_tokens} of an answer"
            )
    ends = _ends(tracked.model, tokenizer)
    tails = greedy(tracked.model, [x.head for x in due.values()], new_tokens, stop=ends)
    found = {}
    for (n, x), tail in zip(due.items(), tails):
        if not tail:
            raise ValueError(
                f"row {n}: to {x.asked!r} the model answers nothing (it ends at once): give an "
                f"answer, or put the prompt into the format that it was fine-tuned on"
            )
        ids, labels = (*x.head, *tail), (data.NO_LOSS,) * len(x.head) + tuple(tail)
        if len(tail) < new_tokens and x.closing and (x.always or x.closing[0] in ends):
            ids, labels = (*ids, *x.closing), labels + x.labels
        found[n] = data.Sequence(n, ids, labels)
    return found


def _ends(model, tokenizer) -> Collection[int]:
    """The ids that end what the model writes."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    return {x for x in (*listed, tokenizer.eos_token_id) if x is not None}
