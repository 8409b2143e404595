"""Three models in a chain of stages, in small."""

from types import SimpleNamespace

from msif.core.data import NO_LOSS, Sequence
from msif.core.ekfac import fit
from msif.core.influence import NONE, Damping, Stage
from msif.core.layers import Tracked, tracked_layers
from support.tiny import documents, neox

RELATIVE = (Damping(0.1), Damping(0.2))
STAGES = 3


def chained():
    """Three stages (the models of seeds 0, 1, 2: nothing here needs them trained),
    per-head factors, documents, queries."""
    models = [neox(k) for k in range(STAGES)]
    data = [documents(6, seed=10 + k) for k in range(STAGES)]
    layers = tracked_layers(models[0], per_head=True)
    all_tracked = [Tracked(m, layers) for m in models]
    factors = [fit(each, d, samples=1) for each, d in zip(all_tracked, data)]
    queries = [
        Sequence(x.index, x.input_ids, (*[NO_LOSS] * (len(x.input_ids) - 2), *x.labels[-2:]))
        for x in documents(3, 20)
    ]
    return SimpleNamespace(
        models=models,
        tracked=all_tracked,
        data=data,
        layers=layers,
        factors=factors,
        queries=queries,
    )


def stages_of(study, k=2, damping=RELATIVE):
    """The first k of its stages, all with the same damping and α."""
    return [
        Stage(f, damping=damping[0], alpha=NONE if i == 0 else damping[1])
        for i, f in enumerate(study.factors[:k])
    ]
