"""What corpora, models and questions say together, and how sure they are.

A corpus is a world of its own: its models and questions are drawn again for the error, but two
corpora are too few to be drawn, so that what each of them says is kept beside the mean (`Mean`).
"""

from typing import NamedTuple

import numpy as np

from msif.study import metrics


class Mean(NamedTuple):
    """value: the mean over corpora; error: its standard error; each: what each corpus has."""

    value: float
    error: float
    each: tuple

    def __str__(self):
        return f"{self.value:.2f} ± {self.error:.2f}"

    @property
    def place(self):
        """Of a difference: "ahead of" or "behind", where it exceeds two standard errors and has one
        sign in every corpus; else "level with"."""
        sure = abs(self.value) > 2 * self.error and len({x > 0 for x in self.each}) == 1
        return "level with" if not sure else "ahead of" if self.value > 0 else "behind"


def pooled(pairs):
    """`Mean` of (value, standard error) of each corpus, whose errors are independent."""
    values, errors = (np.array(x, dtype=float) for x in zip(*pairs))
    error = np.sqrt((errors**2).sum()) / len(errors)
    return Mean(float(values.mean()), float(error), tuple(values.tolist()))


def over(values, resamples=300):
    """`Mean` of values [(models, questions) of each corpus]: both are drawn again, with
    replacement."""
    rng = np.random.default_rng(0)

    def error(x):
        drawn = ([rng.integers(n, size=n) for n in x.shape] for _ in range(resamples))
        return np.std([x[np.ix_(*rows)].mean() for rows in drawn], ddof=1)

    values = [np.asarray(x, dtype=float) for x in values]
    return pooled([(x.mean(), error(x)) for x in values])


def chosen(values):
    """The setting for each corpus: that with the highest mean over all other corpora, or, of one
    corpus, over itself. values: [(settings, …) of each corpus]."""
    means = [np.asarray(x).reshape(len(x), -1).mean(1) for x in values]
    others = [[y for m, y in enumerate(means) if m != n] or [x] for n, x in enumerate(means)]
    return [int(np.mean(few, axis=0).argmax()) for few in others]


def alike(one, other):
    """Do the same documents matter to two kinds of fine-tuning? 1: they do, 0: others do.

    Spearman over subsets of two retrainings of the two kinds, divided by the geometric mean of the
    same within each kind; the two differ in their seed, as kinds of one seed share a pre-training.
    one, other: (subsets, seeds, q), at least two seeds. nan where a kind does not agree with
    itself."""
    within = [between(x, x) for x in (one, other)]
    if min(within) <= 0:
        return float("nan")
    return between(one, other) / float(np.sqrt(np.prod(within)))


def between(one, other):
    """The mean over questions and pairs of different seeds of Spearman over subsets."""
    a, b = (np.moveaxis(np.asarray(x), 0, 2) for x in (one, other))
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i != j]
    return float(np.mean([metrics.spearman(a[i], b[j]).mean() for i, j in pairs]))
