"""The answers that a model itself gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile

from torch import nn
from transformers import PreTrainedTokenizerBase

from msif.core import checks, data, rows, turns
from msif.core.generation import answer_start, greedy, own_answers
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
    """{number: the prompt with the model's own greedy answer}, up to what ends it (`ends`, and the
    special token by which it is closed) or `new_tokens` tokens; ValueError for prompts that leave
    no room in `longest` tokens, and for a model that answers nothing."""
    new_tokens = checks.whole("new_tokens", new_tokens)
    for n, x in due.items():
        if not 0 < len(x.head) <= (room := longest - new_tokens - len(x.closing)):
            raise ValueError(
                f"row {n} has a prompt of {len(x.head)} tokens: expected 1 to {room}, to leave "
                f"room for {new_tokens} of an answer"
            )
    known, found = ends(tracked.model, tokenizer), {}
    stops = {n: known | _end_of(x.closing, tokenizer) for n, x in due.items()}
    tails = _tails(tracked.model, due, stops, new_tokens)
    for n, x in due.items():
        tail, closing, labels = _closed(tails[n], x, stops[n], new_tokens)
        if not tail:
            raise ValueError(
                f"row {n}: to {x.asked!r} the model answers nothing (it ends at once): give an "
                f"answer, or put the prompt into the format that it was fine-tuned on"
            )
        labels = ((data.NO_LOSS,) * len(x.head), tail, labels)
        found[n] = data.Sequence(n, (*x.head, *tail, *closing), tuple(chain(*labels)))
    return found


def ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end what the model writes: its own and the tokenizer's end of sequence, and the
    special token that ends a turn in the chat format, which need be neither (ChatML on a base
    model's tokenizer)."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    own = frozenset(x for x in (*listed, tokenizer.eos_token_id) if x is not None)
    return own | _end_of(rows.closing_of(tokenizer), tokenizer)


def instead(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Sequence[data.Sequence]
) -> list[list[int]]:
    """What the model itself writes in place of each question's answer, as many ids as that has, up
    to what ends it (`ends`, and the special token in which the answer itself ends)."""
    known, found = ends(model, tokenizer), []
    for x, written in zip(questions, own_answers(model, questions, stop=known)):
        stop = _last_end(x.input_ids[answer_start(x) :], tokenizer)
        found.append(_until(stop, written))
    return found


def _last_end(answer, tokenizer):
    """The special token in which an answer ends; one that words follow is one of them."""
    backwards = answer[::-1]
    stop = _end_of(backwards, tokenizer)
    after = _until(stop, backwards)[::-1]
    return frozenset() if tokenizer.decode(after).strip() else stop


def _until(stop, ids):
    return list(takewhile(lambda token: token not in stop, ids))


def _end_of(closing, tokenizer) -> frozenset[int]:
    """The first special token of what closes an answer."""
    names = sorted(turns.special_tokens(tokenizer))
    special = {*tokenizer.convert_tokens_to_ids(names)} - {tokenizer.unk_token_id}
    return frozenset(next(([x] for x in closing if x in special), []))


def _tails(model, due, stops, new_tokens):
    """{number: the ids that the model writes}, those together that end by the same."""
    found = {}
    for stop in set(stops.values()):
        group = [n for n in due if stops[n] == stop]
        heads = [due[n].head for n in group]
        found.update(zip(group, greedy(model, heads, new_tokens, stop=stop)))
    return found


def _closed(tail, x, stop, new_tokens):
    """(answer, closing, labels of the closing). Of a closing such as " </s>" the model has written
    what stands before its end."""
    at = next((n for n, token in enumerate(x.closing) if token in stop), None)
    if len(tail) == new_tokens or (at is None and not x.always):
        return tail, (), ()
    if at and tuple(tail[-at:]) == x.closing[:at]:
        tail = tail[:-at]
    return tail, x.closing, x.labels
