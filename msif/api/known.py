"""Does a model know the data that a stage is said to have trained it on? Doubts are warned of."""

import math
import warnings

from msif.core import data, preferences
from msif.core.generation import log_probabilities, own_share
from msif.core.models import limits

CHECKED = 64  # fine-tuning rows on which `fit` looks whether the model gives their answers


def look_at_answers(model, sequences):
    """Warn where the model itself would give less than half of the answers' tokens."""
    _look_at_documents(model, sequences)
    rows = [
        x
        for x in sequences
        if not isinstance(x.labels, int) and x.labels[0] == data.NO_LOSS and len(x.labels) > 1
    ]
    if not rows or len(rows) < len(sequences):
        return
    few = rows[:: -(-len(rows) // CHECKED)]
    share = own_share(model.tracked.model, few)
    if share < 0.5:
        warnings.warn(
            f"{model.source} gets its own fine-tuning rows wrong: of the answers' tokens, it would "
            f"itself write {share:.0%} ({len(few)} rows looked at). Was it fine-tuned on these "
            f"rows? Check the prompt's format (chat template, special words, spaces), the "
            f"tokenizer, and the order of base and tuned: scores of the wrong rows mean nothing",
            stacklevel=3,
        )


def _look_at_documents(model, sequences):
    """Warn where the model knows the documents no better than chance."""
    whole = [x for x in sequences if not isinstance(x.labels, int) and x.labels[0] != data.NO_LOSS]
    words = limits(model.tracked.model)[0]
    if not whole or not words < float("inf"):
        return
    few = whole[:: -(-len(whole) // CHECKED)]
    tokens = sum(len(x.input_ids) - 1 for x in few)
    nats = -log_probabilities(model.tracked.model, few).sum().item() / tokens
    if nats > math.log(words):
        warnings.warn(
            f"{model.source} knows these documents no better than chance: {nats:.1f} nats a token, "
            f"where {math.log(words):.1f} is a guess among {words:,} ({len(few)} documents looked "
            f"at). Was it trained on such texts, with this tokenizer?",
            stacklevel=4,
        )


def look_at_pairs(model, items, begun, batch_size):
    """Warn where a stage of preferences has not raised the odds of what was chosen.

    begun: the loss against the model that it began with (`preferences.against`), which knows the
    margins there.
    """
    few = items[:: -(-len(items) // CHECKED)]
    before = [begun.reference[x.index] for x in few]
    grown = preferences.margins(model.tracked.model, few, batch_size).cpu().numpy() - before
    if grown.mean() <= 0 or (grown > 0).mean() < 0.5:
        warnings.warn(
            f"{model.source} does not prefer what its pairs chose: next to the model that it began "
            f"with, the odds of chosen against rejected have grown in {(grown > 0).mean():.0%} of "
            f"them ({len(few)} looked at), by {grown.mean():+.2g} nats on average. Was it trained "
            f"on these pairs, from this start? Are chosen and rejected exchanged?",
            stacklevel=4,
        )
