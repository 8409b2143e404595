"""msif as the benchmarks run it; the methods are those of `libraries`."""

import os

from workload import sequences, tracked

DAMPING = 0.1


class Msif:
    """msif: `fitting.fit` into a folder, `queries.preconditioned`, `influence.score`;
    "low-rank": `lowrank.score`, compression included.

    The covariance pass keeps what it captures on disk,
    so that the eigenvalue pass need not run the model."""

    modes = ["exact", "low-rank"]
    keep = "16GiB"

    def __init__(self, model, data, shape, folder, labels):
        from msif.core import influence, queries
        from msif.scale import fitting, lowrank

        self.fitting = fitting
        self.influence = influence
        self.lowrank = lowrank
        self.queries = queries
        self.tracked = tracked(model, shape)
        self.shape = shape
        self.labels = labels
        self.folder = folder
        self.data = {name: sequences(ids) for name, ids in data.items()}

    def fit(self):
        """EK-FAC on the training sequences."""
        self.factors = self.fitting.fit(
            os.path.join(self.folder, "factors"),
            self.tracked,
            self.data["train"],
            labels=self.labels,
            samples=1,
            batch_size=self.shape.batch,
            keep=self.keep,
        )

    def score(self, mode):
        """(queries, candidates), in one of the modes."""
        stages = [self.influence.Stage(self.factors, self.influence.Damping(DAMPING))]
        w = self.queries.preconditioned(self.tracked, self.data["query"], stages, batch_size=8)
        if mode == "exact":
            return self.influence.score(
                self.tracked, self.data["candidates"], w, batch_size=self.shape.batch
            ).values
        compressed = self.lowrank.compress(w, self.factors, error=0.01, positions=self.shape.length)
        return self.lowrank.score(
            self.tracked, self.data["candidates"], compressed, batch_size=self.shape.batch
        ).values


class MsifInMemory(Msif):
    """msif with `ekfac.fit` and `influence.precondition`: nothing on disk,
    the model run in both passes."""

    modes = ["exact"]

    def fit(self):
        """EK-FAC on the training sequences."""
        from msif.core import ekfac

        self.factors = ekfac.fit(
            self.tracked,
            self.data["train"],
            labels=self.labels,
            samples=1,
            batch_size=self.shape.batch,
        )

    def score(self, mode):
        """(queries, candidates), in one of the modes."""
        i = self.influence
        q = i.query_gradients(self.tracked, self.data["query"], batch_size=self.shape.queries)
        (w,) = i.precondition(q, [i.Stage(self.factors, i.Damping(DAMPING))])
        return i.score(self.tracked, self.data["candidates"], w, batch_size=self.shape.batch).values
