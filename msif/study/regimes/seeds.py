"""Does a model predict the retrainings of its own seed better than those of others?"""

import numpy as np

from msif.study import metrics
from msif.study.retraining import datamodels


def own_less_other(tables, found, method, resamples=300):
    """LDS of a model on the retrainings of its own seed, less the mean of its LDS on those of each
    other seed: (difference, standard error), the mean over those models that have their own.

    tables: {method: (q, N)} of each model, those with their own retrainings first. found:
    `recipes.Outcomes`. The error is of a bootstrap over subsets and queries, the same for both, as
    for `metrics.lds_difference`."""
    models = range(found.own.shape[1])
    predicted = [datamodels.predicted({method: tables[k][method]}, found.left_out) for k in models]
    rng, (subsets, _, queries) = np.random.default_rng(0), found.own.shape

    def difference(rows, columns):
        def lds(k, outcomes, seed):
            few = np.asarray(predicted[k][method])[columns][:, rows]
            return np.nanmean(metrics.spearman(few, outcomes[rows, seed][:, columns].T))

        others = range(found.others.shape[1])
        gaps = [
            lds(k, found.own, k) - np.mean([lds(k, found.others, j) for j in others])
            for k in models
        ]
        return float(np.mean(gaps))

    drawn = [
        difference(rng.integers(subsets, size=subsets), rng.integers(queries, size=queries))
        for _ in range(resamples)
    ]
    return difference(np.arange(subsets), np.arange(queries)), float(np.std(drawn, ddof=1))
