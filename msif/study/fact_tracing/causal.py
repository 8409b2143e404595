"""Which sentences caused the answer? Both stages are retrained without random halves of every
queried fact's sentences.

Each retraining leaves out a random half of the candidates of *every* queried fact at once, so that
one retraining tests all sentences of all facts. What the other facts lose meanwhile is noise, which
random assignment makes independent of the candidate. With x_z = 1 where z stays and 0 where it is
left out, and a level for each training seed, least squares over the retrainings gives

    f = level(seed) + Σ_z drop(z) x_z + noise        [nats]; drop > 0: z taught the answer

f: log-probability of the answer at the retrained θ₂ (`retraining`). A drop is the mean effect of a
sentence among random halves of its like. Leaving out one sentence at a time would measure it among
all others, with an error about √(candidates / 4) times as large for as many retrainings: on the
generated corpora one sentence of five moves f by a tenth of what one retraining's noise does.
"""

from dataclasses import dataclass

import numpy as np
import torch

from msif.study import metrics
from msif.study.beds import retraining


@dataclass(frozen=True)
class Effects:
    """Per query, aligned with its candidates: drop [nats] and its standard error; causal: the
    candidates with drop > 2 errors (document numbers; possibly none)."""

    candidates: list
    drop: list
    error: list

    @property
    def causal(self):
        """For each query the candidates with drop > 2 errors: numbers of documents."""
        return [
            [n for n, high in zip(own, drop > 2 * error) if high]
            for own, drop, error in zip(self.candidates, self.drop, self.error)
        ]

    def table(self):
        """The drops as scores (q, n), 0 for what is no candidate of a query."""
        found = np.zeros((len(self.candidates), 1 + max(map(max, self.candidates))))
        for row, few, drop in zip(found, self.candidates, self.drop):
            row[few] = drop
        return found


def design(queries, documents, subsets, seed=0):
    """Documents to leave out of each retraining: (subsets, documents) bool.

    queries: rows with `candidates`. documents: how many there are. Each candidate is left out of
    half of the subsets (± 1), drawn for each by itself. Raises ValueError for too few subsets to
    tell a query's candidates apart with an error, and for facts that share a candidate."""
    facts = list(dict.fromkeys(tuple(query["candidates"]) for query in queries))
    if subsets < (least := 2 * max(map(len, facts))):
        raise ValueError(
            f"subsets is {subsets}; expected at least {least}, two for each of a query's candidates"
        )
    if len(numbers := [n for fact in facts for n in fact]) != len(set(numbers)):
        raise ValueError(
            "two queries share some of their candidates: give them equal candidates, or ask about "
            "one at a time"
        )
    rng = torch.Generator().manual_seed(seed)
    left_out = torch.zeros(subsets, documents, dtype=torch.bool)
    for n in numbers:
        left_out[torch.randperm(subsets, generator=rng)[: subsets // 2], n] = True
    return left_out


def outcomes(recipe, left_out, seeds, processes=None):
    """f after each retraining, (subsets, q) float64: the subsets take the training seeds in turn.
    Arguments as `retraining.outcomes`."""
    found = np.empty((len(left_out), len(recipe.corpus.queries)))
    for k, seed in enumerate(seeds):
        own, title = left_out[k :: len(seeds)], f"retraining, seed {seed}"
        runs = retraining.outcomes(recipe, own, [seed], processes, title=title)
        found[k :: len(seeds)] = runs["log_probability"][:, 0].numpy()
    return found


def effects(f, left_out, queries, seeds):
    """The `Effects` of each query's candidates on its answer.

    f: (subsets, q) of `outcomes` with these seeds, in nats. left_out: (subsets, N) bool, a
    `design`. The error is that of ordinary least squares. Raises ValueError where f has another
    shape, or where a query's design does not identify its drops."""
    f, left_out = np.asarray(f, dtype=np.float64), np.asarray(left_out)
    if f.shape != (len(left_out), len(queries)):
        raise ValueError(
            f"outcomes have shape {f.shape}; expected ({len(left_out)} subsets, {len(queries)} "
            "queries)"
        )
    level = np.arange(len(f))[:, None] % len(seeds) == np.arange(len(seeds))
    candidates, found = [query["candidates"] for query in queries], []
    for number, (values, own) in enumerate(zip(f.T, candidates)):
        x = np.column_stack([~left_out[:, own], level])
        found.append(_least_squares(x, values, len(own), number))
    return Effects(candidates, *map(list, zip(*found)))


def halves(f, left_out, queries, seeds):
    """The two `Effects` of alternate retrainings: how far does noise let one find what the other
    does? Arguments as for `effects`, which each half has to identify."""
    first = np.arange(len(f)) // len(seeds) % 2 == 0  # the training seeds take turns in both
    return [effects(f[own], left_out[own], queries, seeds) for own in (first, ~first)]


def found_by(scores, effects, among=None):
    """Area under the curve by which scores find the causal ones of a query's candidates: (q,), nan
    where none or all are causal.

    scores: (q, n), or other `Effects`, whose drops are the scores. among: for each query those of
    its candidates that count; None: all."""
    among = among or effects.candidates
    causal = [sorted(set(own) & set(few)) for own, few in zip(effects.causal, among)]
    rest = [sorted(set(few) - set(own)) for few, own in zip(among, causal)]
    if isinstance(scores, Effects):
        scores = scores.table()
    return metrics.wins(scores, causal, rest)


def between(halves, scores=None, among=None):
    """`found_by` of what one half calls causal by the drops of the other, or by scores (q, n): the
    mean of both ways round, nan where neither half tells candidates apart: (q,)."""
    ways = [(half, other if scores is None else scores) for half, other in (halves, halves[::-1])]
    found = np.array([found_by(by, half, among) for half, by in ways])
    known = np.isfinite(found)
    mean = np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), mean, np.nan)


def _least_squares(x, f, count, number):
    """The first `count` coefficients of f on x (subsets, predictors), and their standard errors."""
    x, freedom = x.astype(np.float64), len(x) - x.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        raise ValueError(
            f"query {number}: {len(x)} retrainings do not identify the effects of its {count} "
            "candidates; add some"
        )
    inverse = np.linalg.inv(x.T @ x)
    estimate = inverse @ x.T @ f
    variance = np.square(f - x @ estimate).sum() / freedom
    return estimate[:count], np.sqrt(variance * inverse.diagonal()[:count])


def correlations(scores, found):
    """Spearman's correlation of the scores (q, n) of a query's candidates with their drops: (q,); 0
    where all scores are equal."""
    with np.errstate(invalid="ignore"):  # 0 / 0, where there is no order
        rows = [
            metrics.spearman(np.asarray(row)[None, own], drop[None])[0]
            for row, own, drop in zip(scores, found.candidates, found.drop, strict=True)
        ]
    return np.nan_to_num(rows)
