"""Which sentences caused the answer? Both stages are retrained without single candidates, and the answer's log-probability is compared.

Every retraining leaves out at most one random candidate of each fact, for all facts at once, so that one retraining tests as many
sentences as there are facts (`design`). What the other facts lose meanwhile is noise, which random assignment makes independent of the
candidate. `blanks` of a fact's options leave out nothing: without them only differences between the candidates of a fact could be
estimated, and a sentence that teaches nothing would look harmful beside those that teach.

    drop(z) = mean of f where nothing of the fact is left out − mean of f where z is                    [nats]; positive: z taught it

f: log-probability of the answer at the retrained θ₂ (`retraining.outcomes`), both means over the same training seeds.
"""
import random
from dataclasses import dataclass

import numpy as np
import torch

from msif import metrics


@dataclass(frozen=True)
class Effects:
    """Per query, aligned with its candidates: drop [nats] and its standard error; causal: the candidates that dropped f by more
    than two standard errors (document numbers; none is possible)."""
    candidates: list
    drop: list
    error: list

    @property
    def causal(self):
        return [[n for n, high in zip(own, drop > 2 * error) if high] for own, drop, error in zip(self.candidates, self.drop, self.error)]


def design(queries, documents, subsets, seed=0, blanks=3):
    """Documents to leave out of each retraining: (subsets, documents) bool.

    queries: rows with `candidates`. documents: how many there are. Each fact goes through its candidates and `blanks` times nothing in
    random order, again and again, so that over the subsets each candidate is left out equally often, ± 1.
    Estimates have the least error for blanks near the square root of the number of candidates.
    Raises ValueError for subsets that leave some candidate in everywhere, for no blanks, and for facts that share a candidate.
    """
    facts = list(dict.fromkeys(tuple(query["candidates"]) for query in queries))
    most = blanks + max(map(len, facts))
    if blanks < 1 or subsets < most:
        raise ValueError(f"subsets is {subsets} and blanks {blanks}; expected at least {most} subsets, so that each of a query's "
                         f"candidates is left out once, and 1 blank, to compare with")
    if len(numbers := [n for fact in facts for n in fact]) != len(set(numbers)):
        raise ValueError("two queries share some of their candidates: one retraining would leave out two of them; "
                         "give them equal candidates, or ask about one at a time")
    rng, left_out = random.Random(seed), torch.zeros(subsets, documents, dtype=torch.bool)
    for fact in facts:
        options = [*fact, *[None] * blanks]
        order = [n for _ in range(-(-subsets // len(options))) for n in rng.sample(options, len(options))]
        for row, n in zip(left_out, order):
            if n is not None:
                row[n] = True
    return left_out


def effects(outcomes, left_out, queries):
    """The `Effects` of leaving out each query's candidates.

    outcomes: (subsets, seeds, q), f after each retraining, in nats; every seed ran all subsets. left_out: (subsets, N) bool, a `design`.

    f is first averaged over seeds: a seed's own level is in both means of a drop and cancels, and what repeats over seeds within one
    subset, the loss of the other facts' sentences, is not mistaken for independent evidence. Some retrainings turn out better than others
    for all queries alike, so a level for each subset is fitted together with all drops, by least squares (f = query and option + subset),
    and taken off. With s² the variance of the rest, pooled over a query's options (each alone has few retrainings, and the same causes):

        error(z) = s · sqrt(1 / subsets without z + 1 / subsets with all candidates),

    so more seeds and more subsets both lower it; that the levels are estimated adds about 1 / q to its square, which is left out.
    Raises ValueError where a query's design does not identify its drops.
    """
    outcomes, left_out = np.asarray(outcomes, dtype=np.float64), np.asarray(left_out)
    if outcomes.ndim != 3 or outcomes.shape[::2] != (len(left_out), len(queries)):
        raise ValueError(f"outcomes have shape {outcomes.shape}; expected ({len(left_out)} subsets, seeds, {len(queries)} queries)")
    options = [_options(left_out[:, query["candidates"]], number) for number, query in enumerate(queries)]
    f, free = outcomes.mean(1), sum(len(x) - x.shape[1] for x in options) - (len(left_out) - 1)
    if free < 1:
        raise ValueError(f"{len(queries)} queries and {len(left_out)} subsets leave nothing to tell the noise from; expected more of them")
    f = f - _levels(f, options)[:, None]
    found = [_one(x, option, free / len(queries)) for x, option in zip(f.T, options)]
    return Effects([query["candidates"] for query in queries], *map(list, zip(*found)))


def _options(without, number):
    """Which option each subset took: nothing, or one of the candidates; (subsets, 1 + candidates) bool from (subsets, candidates)."""
    option = np.column_stack([~without.any(1), without])
    counts = option.sum(0)
    if (option.sum(1) != 1).any() or counts.min() < 1 or len(option) <= len(counts):
        raise ValueError(f"query {number}: expected subsets that leave out one of {len(counts) - 1} candidates or none, each of these "
                         f"somewhere, and more than {len(counts)} subsets; found {counts[0]} without any, {counts[1:].tolist()} without "
                         f"each candidate, of {len(option)}")
    return option


def _levels(f, options):
    """The subsets' levels (subsets,), up to a constant: the normal equations with all means of options eliminated."""
    rests = [np.eye(len(f)) - option / option.sum(0) @ option.T for option in options]      # takes an option's mean off
    return np.linalg.pinv(sum(rests), rcond=1e-10, hermitian=True) @ sum(rest @ x for rest, x in zip(rests, f.T))


def _one(f, option, free):
    """(drop, error), each (candidates,), from f (subsets,) and `_options`; free: degrees of freedom of the rest."""
    counts = option.sum(0)
    means = f @ option / counts
    return means[0] - means[1:], np.sqrt(((f - option @ means) ** 2).sum() / free * (1 / counts[1:] + 1 / counts[0]))


def within(scores, candidates):
    """Scores (q, n) with −∞ for what is no candidate of the query, so that `metrics` ranks the candidates alone: (q, n) float64."""
    found = np.full(np.shape(scores), -np.inf)
    for row, scored, own in zip(found, np.asarray(scores), candidates, strict=True):
        row[own] = scored[own]
    return found


def chance(candidates, proponents):
    """1 / rank of the first proponent among a query's candidates, expected of a random order (or of equal scores): (q,)."""
    size = 1 + max(max(own) for own in candidates)
    return metrics.reciprocal_ranks(within(np.zeros((len(candidates), size)), candidates), proponents)


def causal_ranks(scores, found):
    """1 / rank of the first causal sentence among the candidates, of the queries that have one: (q',). scores: (q, n)."""
    some = [i for i, own in enumerate(found.causal) if own]
    ranked = within(np.asarray(scores)[some], [found.candidates[i] for i in some])
    return metrics.reciprocal_ranks(ranked, [found.causal[i] for i in some])


def correlations(scores, found):
    """Spearman's correlation of the scores (q, n) of a query's candidates with their drops: (q,); 0 where all scores are equal."""
    with np.errstate(invalid="ignore"):                                                    # 0 / 0, where there is no order
        rows = [metrics.spearman(np.asarray(row)[None, own], drop[None])[0]
                for row, own, drop in zip(scores, found.candidates, found.drop, strict=True)]
    return np.nan_to_num(rows)
