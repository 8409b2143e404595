"""What really happens when documents are left out: pre-training again, and each kind of fine-tuning
from what it gives.

Every retraining keeps the same batches in the same order; a document that is left out weighs 0 in
them. All kinds share one pre-training.
"""

import torch

from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.retraining import measured, side_by_side
from msif.study.beds.training import train
from msif.study.kinds_of_fine_tuning.tunings import (
    KINDS,
    LORA,
    finetuned,
    merged,
    preference_pairs,
)


def outcome(recipe, settings, left_out, seed):
    """{kind: (q,)}: the log-probability of each query's answer (nats) after all stages, pre-trained
    without `left_out` ((N,) bool). Kept in scratch/."""
    torch.set_num_threads(1)  # the processes share the cores; and equal numbers on any machine

    def compute():
        tokenizer, net = testbed.start(recipe.corpus, recipe.model, seed)
        documents, rows, queries = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
        items = preference_pairs(recipe.corpus, tokenizer, recipe.max_length)
        train(net, documents, seed=seed, weights=(~left_out).float(), **recipe.pretraining)
        found = finetuned(net, rows, items, seed, settings)
        found[LORA] = merged(found[LORA])
        return {kind: measured(found[kind], queries)["log_probability"] for kind in KINDS}

    key = recipe.key() | {"left_out": left_out.nonzero()[:, 0].tolist(), "seed": seed}
    return scratch.tensors("kind-outcome", key | {"settings": settings}, compute)


def outcomes(recipe, settings, left_out, seeds, processes=None):
    """{kind: (subsets, seeds, q)} of left_out (subsets, N) bool; processes: how many at once, all
    cores by default."""
    jobs = {
        (i, seed): (recipe, settings, row, seed) for i, row in enumerate(left_out) for seed in seeds
    }
    found = side_by_side(outcome, jobs, processes, "retraining")

    def of_subset(i, kind):
        return torch.stack([found[i, seed][kind] for seed in seeds])

    return {kind: torch.stack([of_subset(i, kind) for i in range(len(left_out))]) for kind in KINDS}
