"""What a language model writes."""

from collections.abc import Collection, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig

from msif.core import checks, data
from msif.core.backward import frozen
from msif.core.models import logits
from msif.core.objectives import align, log_probability
from msif.core.selfcheck import known_batching


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int = 64,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """Greedy continuations of prompts (token ids as `data.split_answer` gives them, a BOS included
    where the tokenizer has one): a list of `new_tokens` ids each, or of those before the first of
    the ids in `stop`. Without `stop`, the model's own end-of-text token is never written.

    Prompts of equal length go together, `batch_size` at a time. Raises ValueError for a prompt
    without tokens, and for new_tokens or a batch_size below 1.
    """
    new_tokens = checks.whole("new_tokens", new_tokens)
    batch_size = checks.whole("batch size", batch_size)
    if (empty := next((n for n, p in enumerate(prompts) if not len(p)), None)) is not None:
        raise ValueError(f"prompt {empty} has no tokens; expected at least one to continue")
    ends = {"eos_token_id": sorted(stop)} if stop else {"min_new_tokens": new_tokens}
    found: list[list[int]] = [[]] * len(prompts)
    if not hasattr(model, "generate"):
        return [_continued(model, list(p), new_tokens, stop) for p in prompts]
    if known_batching(model) == "single":
        batch_size = 1
    with _plainly(model):
        for length in sorted({len(p) for p in prompts}):
            rows = [i for i, p in enumerate(prompts) if len(p) == length]
            for first in range(0, len(rows), batch_size):
                chosen = rows[first : first + batch_size]
                ids = torch.tensor([prompts[i] for i in chosen])
                ids = ids.to(next(model.parameters()).device)
                out = model.generate(  # type: ignore[operator]  # transformers has it in a mixin
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                    **ends,
                )
                for i, row in zip(chosen, out[:, length:].tolist()):
                    end = next((n for n, token in enumerate(row) if token in stop), len(row))
                    found[i] = row[:end]
    return found


def _continued(model, prompt, new_tokens, stop):
    """What a model that has only logits writes."""
    ids = list(prompt)
    with frozen(model):
        while len(ids) < len(prompt) + new_tokens:
            batch = data.collate([data.Sequence(0, tuple(ids), tuple(ids))])
            token = int(logits(model, batch.to(next(model.parameters()).device))[0, -1].argmax())
            if token in stop:
                break
            ids.append(token)
    return ids[len(prompt) :]


@contextmanager
def _plainly(model):
    """The likeliest token each time: no dropout, and none of what generation_config.json may add,
    such as penalties for repeating.

    The end-of-text tokens stay known, so that `min_new_tokens` holds them off."""
    kept = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=kept.eos_token_id)
    try:
        with frozen(model):
            yield
    finally:
        model.generation_config = kept


def answer_start(sequence: data.Sequence) -> int:
    """The position of a sequence's first labelled token."""
    assert not isinstance(sequence.labels, int)
    return next(t for t, label in enumerate(sequence.labels) if label != data.NO_LOSS)


def own_answers(
    model: nn.Module, sequences: Sequence[data.Sequence], stop: Collection[int] = ()
) -> list[list[int]]:
    """What the model itself writes in place of each sequence's answer, its labelled end: greedily,
    as many ids as the answer has, or those before the first of the ids in `stop`."""
    starts = [answer_start(x) for x in sequences]
    longest = max(len(x.input_ids) - start for x, start in zip(sequences, starts))
    written = greedy(
        model, [x.input_ids[:start] for x, start in zip(sequences, starts)], longest, stop=stop
    )
    return [ids[: len(x.input_ids) - start] for ids, x, start in zip(written, sequences, starts)]


@torch.no_grad()
def log_probabilities(
    model: nn.Module, sequences: Sequence[data.Sequence], batch_size: int = 32
) -> torch.Tensor:
    """f of each sequence, the log-probability of its labelled tokens: (q,) float64, nats."""
    device = next(model.parameters()).device
    found: dict[int, torch.Tensor] = {}
    with frozen(model):
        for group, batch in _batches(model, list(sequences), batch_size):
            batch = batch.to(device)
            values = log_probability(logits(model, batch), batch).double().cpu()
            found.update(zip(group, values))
    return torch.stack([found[n] for n in range(len(found))])


def _batches(model, sequences, batch_size):
    """(positions in `sequences`, batch), where none changes what the model says of another."""
    for group in data.grouped(sequences, batch_size, known_batching(model)):
        yield group, data.collate([sequences[n] for n in group])


@torch.no_grad()
def own_share(model: nn.Module, sequences: list[data.Sequence], batch_size: int = 32) -> float:
    """The share of the labelled tokens that are the model's own first choice, given all before
    them: from 0 to 1.

    Language models only: labels (n, S).
    """
    right = total = 0
    device = next(model.parameters()).device
    with frozen(model):
        for _, batch in _batches(model, sequences, batch_size):
            batch = batch.to(device)
            z, y = align(logits(model, batch), batch.labels)
            labelled = y != data.NO_LOSS
            right += int((z.argmax(2) == y)[labelled].sum())
            total += int(labelled.sum())
    return right / total
