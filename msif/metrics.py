"""Arrays in, numbers out: how well do scores rank the documents that state a fact, and how sure are we?"""
import numpy as np


def ranks(scores):
    """Rank of each document, 1 = highest score; ties share their mean rank. scores: (q, n) -> (q, n) float64."""
    from scipy.stats import rankdata
    return rankdata(-np.asarray(scores, dtype=np.float64), axis=1)


def reciprocal_ranks(scores, proponents):
    """1 / rank of the best-ranked proponent of each query: (q,). proponents: q lists of document numbers."""
    return np.array([1 / row[list(own)].min() for row, own in zip(ranks(scores), proponents)])


def recalls(scores, proponents, k=10):
    """Share of each query's proponents among its k highest documents: (q,)."""
    return np.array([(row[list(own)] <= k).mean() for row, own in zip(ranks(scores), proponents)])


def mean_and_error(values):
    """Mean and its standard error over queries."""
    values = np.asarray(values, dtype=np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def bootstrap_interval(groups, level=0.95, resamples=2000, seed=0):
    """(mean, low, high): bootstrap over groups (seeds) and, within each, over queries.

    groups: one array of per-query values for each seed. The mean is over seeds of the mean over queries. A paired
    difference is the interval of the per-query differences.
    """
    rng, groups = np.random.default_rng(seed), [np.asarray(g, dtype=np.float64) for g in groups]
    means = np.array([[rng.choice(g, (resamples, len(g))).mean(1)] for g in groups])[:, 0]       # (seeds, resamples)
    chosen = rng.integers(len(groups), size=(len(groups), resamples))
    means = np.take_along_axis(means, chosen, 0).mean(0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([g.mean() for g in groups])), float(low), float(high)


def top_share(scores, share=0.01):
    """Part of all positive score that the highest `share` of the documents holds: one query's scores (n,) -> [0, 1]."""
    positive = np.sort(np.maximum(np.asarray(scores, dtype=np.float64), 0))[::-1]
    return positive[:max(1, round(share * len(positive)))].sum() / positive.sum()


def tracing_record(scores, proponents, **labels):
    """One record {..., mrr, mrr_se, recall_at_10, recall_at_10_se} of a method's scores (q, n)."""
    mrr, mrr_se = mean_and_error(reciprocal_ranks(scores, proponents))
    recall, recall_se = mean_and_error(recalls(scores, proponents))
    found = {"mrr": mrr, "mrr_se": mrr_se, "recall_at_10": recall, "recall_at_10_se": recall_se}
    return {**labels, **{name: round(float(value), 4) for name, value in found.items()}}


def by_method(records, *names):
    """Nested numbers for `dvc metrics show`: {method: {raw or normalised: {name: mean over seeds}}}."""
    found = {}
    for r in records:
        form = "normalised" if r["normalised"] else "raw"
        for name in names:
            found.setdefault(r["method"], {}).setdefault(form, {}).setdefault(name, []).append(r[name])
    return {m: {f: {n: round(float(np.mean(v)), 4) for n, v in x.items()} for f, x in forms.items()} for m, forms in found.items()}
