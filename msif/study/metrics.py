"""Arrays in, numbers out: how well do scores rank the documents that state a fact?

And how sure are we?
"""

from math import comb

import numpy as np


def _above_and_tied(scores, document):
    """How many documents score higher than `document`, and which score the same (itself too)."""
    own = scores[document]
    return int((scores > own).sum()), np.flatnonzero(scores == own)


def reciprocal_ranks(scores, proponents):
    """1 / rank of the best-ranked proponent of each query, in expectation over ties: (q,).

    scores: (q, n), rank 1 = highest. proponents: q lists of document numbers. With `above`
    documents higher, t tied and m proponents among those:
    Σ_{i=1}^{t−m+1} C(t−i, m−1) / C(t, m) / (above + i).
    """
    each = zip(scores, proponents, strict=True)
    return np.array([_reciprocal_rank(np.asarray(row), list(own)) for row, own in each])


def _reciprocal_rank(scores, own):
    above, tied = _above_and_tied(scores, max(own, key=lambda n: scores[n]))
    t, m = len(tied), len(set(own) & set(tied.tolist()))
    return sum(comb(t - i, m - 1) / comb(t, m) / (above + i) for i in range(1, t - m + 2))


def recalls(scores, proponents, k=10):
    """Share of each query's proponents among its k highest, in expectation over ties: (q,).

    scores: (q, n). proponents: q lists of document numbers.
    """

    def recall(row, own):
        return np.mean([_chance_in_top(row, n, k) for n in own])

    each = zip(scores, proponents, strict=True)
    return np.array([recall(np.asarray(row), own) for row, own in each])


def _chance_in_top(scores, document, k):
    above, tied = _above_and_tied(scores, document)
    return min(1.0, max(0, k - above) / len(tied))


def wins(scores, better, worse):
    """Of all pairs of a document of `better` and one of `worse`, how often is the better higher?

    scores: (q, n). better, worse: q lists of document numbers. Returns one value a query, (q,):
    a tie is half a win, and without pairs it is nan.
    """

    def share(row, high, low):
        gap = row[high][:, None] - row[low][None]
        return np.mean((gap > 0) + 0.5 * (gap == 0)) if gap.size else np.nan

    each = zip(scores, better, worse, strict=True)
    return np.array([share(np.asarray(row), list(high), list(low)) for row, high, low in each])


def within(scores, candidates):
    """Scores (q, n) with −inf outside each query's candidates, so that only those are ranked.

    candidates: q lists of document numbers.
    """
    found = np.full(np.shape(scores), -np.inf)
    for row, given, own in zip(found, np.asarray(scores), candidates, strict=True):
        row[list(own)] = given[list(own)]
    return found


def mean_and_error(values):
    """Mean and its standard error over queries, nan where there is one alone."""
    values = np.asarray(values, dtype=np.float64)
    alone = len(values) < 2
    return values.mean(), np.nan if alone else values.std(ddof=1) / np.sqrt(len(values))


def bootstrap_interval(groups, level=0.95, resamples=2000, seed=0):
    """(mean, low, high): bootstrap over groups (seeds) and, within each drawn one, over queries.

    groups: one array of per-query values for each seed. The mean is over seeds of the mean over
    queries. A paired difference is the interval of the per-query differences. For K seeds without
    a difference it is up to √(2 − 1/K) too wide; for few seeds that differ much it covers less
    than `level`.
    """
    rng = np.random.default_rng(seed)
    groups = [np.asarray(g, dtype=np.float64) for g in groups]
    drawn = rng.integers(len(groups), size=(resamples, len(groups)))
    means = [np.mean([rng.choice(groups[g], len(groups[g])).mean() for g in row]) for row in drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([g.mean() for g in groups])), float(low), float(high)


def top_share(scores, share=0.01):
    """Part of all positive score that the highest `share` of the documents holds.

    One query's scores (n,) -> [0, 1].
    """
    positive = np.sort(np.maximum(np.asarray(scores, dtype=np.float64), 0))[::-1]
    return positive[: max(1, round(share * len(positive)))].sum() / positive.sum()


def pearson(a, b):
    """Correlation of each row of a with the same row of b: (q, n), (q, n) -> (q,).

    A constant row has nan.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def spearman(a, b):
    """Rank correlation of each row of a with the same row of b: (q, n), (q, n) -> (q,).

    Ties stand at their mean rank.
    """
    from scipy.stats import rankdata

    return pearson(rankdata(a, axis=1), rankdata(b, axis=1))


def seed_agreement(outcomes):
    """r: Spearman over subsets of two retrainings that differ in seed alone.

    outcomes: (subsets, seeds, queries). The mean is over queries and pairs of seeds.
    """
    runs = np.moveaxis(np.asarray(outcomes), 0, 2)  # (seeds, queries, subsets)
    pairs = [(i, j) for i in range(len(runs)) for j in range(i)]
    return float(np.mean([spearman(runs[i], runs[j]).mean() for i, j in pairs]))


def noise_ceiling(agreement, seeds):
    """√ρ_K: the correlation of a perfect predictor with the mean of K seeds' outcomes.

    ρ_K = K r / (1 + (K − 1) r) (Spearman–Brown); r is the agreement of two single seeds.
    A negative r gives 0.
    """
    r = max(agreement, 0.0)
    return float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)))


def lds(predicted, outcomes, resamples=300, seed=0):
    """Linear datamodeling score: (value, standard error).

    The value is the mean over queries of Spearman over subsets, 0 where all predictions of a
    query are equal and so have no order. predicted: (q, subsets), of −(1/N) Σ of the left-out
    scores; outcomes: (subsets, seeds, q), averaged over seeds. The error is of a bootstrap
    over subsets and queries, which is up to √3 too wide (Owen 2007). Source: Park et al. 2023
    (arXiv 2303.14186).
    """
    predicted, measured = np.asarray(predicted), np.asarray(outcomes).mean(1).T

    for name, x in (("predictions", predicted), ("outcomes", measured)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} are not finite: a training or a score has diverged")

    def score(q, s):
        return _ordered(predicted[q][:, s], measured[q][:, s])

    value = float(score(*(np.arange(n) for n in measured.shape)).mean())
    return value, _bootstrap_error(score, measured.shape, resamples, seed)


def _ordered(predicted, measured):
    """`spearman` of each row, 0 for those whose predictions are all equal."""
    return np.where(np.ptp(predicted, axis=1) == 0, 0.0, spearman(predicted, measured))


def lds_difference(predicted, other, outcomes, resamples=300, seed=0):
    """LDS of one prediction minus another's: (value, standard error), shapes as for `lds`.

    The bootstrap draws the same subsets and queries for both.
    """
    a, b, measured = np.asarray(predicted), np.asarray(other), np.asarray(outcomes).mean(1).T

    def gain(q, s):
        found = measured[q][:, s]
        return _ordered(a[q][:, s], found) - _ordered(b[q][:, s], found)

    everything = tuple(np.arange(n) for n in measured.shape)
    return float(gain(*everything).mean()), _bootstrap_error(gain, measured.shape, resamples, seed)


def _bootstrap_error(values, shape, resamples, seed):
    """Standard deviation over resamples of the mean of values(rows, columns).

    Rows and columns are both drawn with replacement.
    """
    rng = np.random.default_rng(seed)

    def drawn():
        return [rng.integers(n, size=n) for n in shape]

    return float(np.std([np.nanmean(values(*drawn())) for _ in range(resamples)], ddof=1))


def tracing_record(scores, proponents, **labels):
    """One record {..., mrr, mrr_se, recall_at_10, recall_at_10_se} of a method's scores (q, n)."""
    mrr, mrr_se = mean_and_error(reciprocal_ranks(scores, proponents))
    recall, recall_se = mean_and_error(recalls(scores, proponents))
    found = {"mrr": mrr, "mrr_se": mrr_se, "recall_at_10": recall, "recall_at_10_se": recall_se}
    return {**labels, **{name: round(float(value), 4) for name, value in found.items()}}


def by_method(records, *names):
    """Nested numbers for `dvc metrics show`.

    Returns {method: {"raw" or "normalised": {name: mean over seeds}}}.
    """
    found = {}
    for r in records:
        forms = found.setdefault(r["method"], {})
        numbers = forms.setdefault("normalised" if r["normalised"] else "raw", {})
        for name in names:
            numbers.setdefault(name, []).append(r[name])

    def means(numbers):
        return {name: round(float(np.mean(values)), 4) for name, values in numbers.items()}

    return {
        method: {form: means(numbers) for form, numbers in forms.items()}
        for method, forms in found.items()
    }
