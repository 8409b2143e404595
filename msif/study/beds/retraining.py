"""What really happens when documents are left out: both stages trained again, many times.

They run in parallel processes. Every retraining keeps the same batches in the same order; a
document that is left out weighs 0 in them. The outcome is f, the log-probability of each query's
answer at the retrained θ₂ (nats). Each retraining is kept in scratch/ when it is done, so that a
killed run goes on where it stopped.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from tqdm import tqdm

from msif.core.data import batches
from msif.core.models import logits
from msif.core.objectives import log_probability, logit_margin
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.training import train
from msif.study.corpora.corpus import Corpus

MEASUREMENTS = {"log_probability": log_probability, "logit_margin": logit_margin}


@dataclass(frozen=True)
class Recipe:
    """How both stages are trained: arguments as for `testbed.pretrain`."""

    corpus: Corpus
    model: dict
    pretraining: dict
    finetuning: dict
    max_length: int = 64

    def key(self):
        """What tells one recipe from another, as JSON values; of the corpus and of weights that
        training starts from, their digests."""
        known = vars(self) | {"corpus": self.corpus.digest()}
        start = testbed.start_digest(self.model)
        return known | ({"start": start} if start else {})


def subsets(documents, count, share, seed=0):
    """`count` random subsets of the documents to leave out: (count, documents) bool.

    In each row `share` of the documents is True, rounded down, but at least one. Raises ValueError
    for a share that is not between 0 and 1."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; expected one between 0 and 1, of what is left out")
    rng = torch.Generator().manual_seed(seed)
    left_out = torch.zeros(count, documents, dtype=torch.bool)
    size = max(1, math.floor(documents * share))
    for row in left_out:
        row[torch.randperm(documents, generator=rng)[:size]] = True
    return left_out


def half_subsets(documents, count, seed=0):
    """`count` random halves of the documents to leave out, as `subsets`."""
    return subsets(documents, count, 0.5, seed)


def retrained(recipe, left_out, seed, last=None):
    """θ₂ after both stages, pre-trained without the documents `left_out` ((N,) bool).

    last: they are left out in that many last epochs of pre-training alone; None: in all. Raises
    ValueError for another number than 1 to all epochs."""
    weights = (~left_out).float()
    if last is not None and not 1 <= last <= recipe.pretraining["epochs"]:
        raise ValueError(
            f"last is {last}; expected 1 to {recipe.pretraining['epochs']}, the epochs of "
            "pre-training"
        )
    if last is not None:
        there = torch.ones(recipe.pretraining["epochs"] - last, len(left_out))
        weights = torch.cat([there, weights.expand(last, -1)])
    return weighted(recipe, weights, seed)


def weighted(recipe, weights, seed):
    """θ₂ after both stages, where a document's loss in pre-training has a factor: weights (N,), or
    (epochs, N)."""
    tokenizer, net = testbed.start(recipe.corpus, recipe.model, seed)
    documents, rows, _ = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
    train(net, documents, seed=seed, weights=weights, **recipe.pretraining)
    train(net, rows, seed=seed, **recipe.finetuning)
    return net


@torch.no_grad()
def measured(model, queries, batch_size=64):
    """{measurement: (q,)} of a model on queries."""
    found = [(logits(model, batch), batch) for batch in batches(queries, batch_size)]
    return {
        name: torch.cat([f(z, batch) for z, batch in found]).cpu()
        for name, f in MEASUREMENTS.items()
    }


def outcome(recipe, left_out, seed, last=None):
    """{measurement: (q,)} of all queries after `retrained`.

    It is computed once, then read from scratch/.
    """
    torch.set_num_threads(1)  # the processes share the cores; and equal numbers on any machine

    def compute():
        net = retrained(recipe, left_out, seed, last)
        tokenizer, _ = testbed.start(recipe.corpus, recipe.model, seed)
        _, _, queries = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
        return measured(net, queries)

    key = recipe.key() | {"left_out": left_out.nonzero()[:, 0].tolist(), "seed": seed}
    return scratch.tensors("outcome", key | ({"last": last} if last else {}), compute)


def outcomes(recipe, left_out, seeds, processes=None, title="retraining", last=None):
    """f after each retraining: {measurement: (subsets, seeds, q)}.

    left_out: (subsets, N) bool; last: as for `retrained`. processes: how many at once; all cores by
    default. An error in one of them is raised after the others have been kept.
    """
    jobs = {
        (i, j): (recipe, row, seed, last)
        for i, row in enumerate(left_out)
        for j, seed in enumerate(seeds)
    }
    found = side_by_side(outcome, jobs, processes, title)

    def of_subset(i, name):
        return torch.stack([found[i, j][name] for j in range(len(seeds))])

    return {
        name: torch.stack([of_subset(i, name) for i in range(len(left_out))])
        for name in MEASUREMENTS
    }


def side_by_side(call, jobs, processes=None, title=None):
    """{key: call(*job)} for {key: job}, in so many processes at once (None: all cores).

    One process is this one: no other has to start. An error in one of several is raised after the
    others have ended."""
    bar = {"total": len(jobs), "desc": title}
    if processes == 1:
        return {key: call(*job) for key, job in tqdm(jobs.items(), **bar)}
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        running = {pool.submit(call, *job): key for key, job in jobs.items()}
        return {running[done]: done.result() for done in tqdm(as_completed(running), **bar)}
