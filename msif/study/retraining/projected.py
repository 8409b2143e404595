"""TrackStar and TRAK of models that are trained here, with every setting that they have.

trackstar   at one pair of models: documents at θ₂, or at θ₁ (`tracing.rivals`)
trak        at θ₂ of several models, each of which saw a random half of the documents, as
            published (`msif.rivals.trak`)
"""

from msif.core.layers import tracked
from msif.rivals.trak import errors, projector, trak, trak_features
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.retraining import half_subsets, retrained
from msif.study.tracing import rivals


def trak_scores(recipe, seeds, settings):
    """[(q, N) of each setting {"dimension", "ridge"}]: TRAK at θ₂ of one model a seed, each of
    which saw a random half of the documents. A smaller dimension takes the first of the largest's
    projections; a ridge is relative, see `trak.trak`."""

    def compute():
        halves = half_subsets(len(recipe.corpus.documents), len(seeds), seeds[0])
        largest = max(x["dimension"] for x in settings)
        found = [features_at(recipe, half, seed, largest) for half, seed in zip(halves, seeds)]
        asked, phi, errors = zip(*found)

        def of(k, ridge):
            return trak([x[:, :k] for x in asked], [x[:, :k] for x in phi], errors, ridge)

        return [of(x["dimension"], x["ridge"]) for x in settings]

    return _kept("trak", recipe.key() | {"seeds": list(seeds), "settings": settings}, compute)


def trak_of_one(case, settings):
    """[(q, N) of each setting] of TRAK at θ₂ of one model that saw all documents, as are the models
    of the other methods."""
    key = case.key() | {"settings": settings}
    return _kept("trak-one", key, lambda: rivals.trak_at(case, ["finetuned"], settings))


def trackstar_scores(case, settings):
    """[(q, N) of each setting] of `rivals.trackstar_at`, with "documents": the model that the
    documents' gradients are taken at."""

    def compute():
        found = [None] * len(settings)
        for name in dict.fromkeys(x["documents"] for x in settings):
            few = [n for n, x in enumerate(settings) if x["documents"] == name]
            tables = rivals.trackstar_at(case, [name], [settings[n] for n in few])
            for n, table in zip(few, tables):
                found[n] = table
        return found

    return _kept("trackstar", case.key() | {"settings": settings}, compute)


def _kept(kind, key, compute):
    """compute() -> [tensor], done once, see `scratch.tensors`."""

    def make():
        return {str(n): x for n, x in enumerate(compute())}

    found = scratch.tensors(kind, key, make)
    return [found[str(n)] for n in range(len(found))]


def features_at(recipe, left_out, seed, dimension):
    """Features of the queries (q, k) and of the documents (N, k), and 1 − p of the documents (N,),
    at one model."""
    net = tracked(retrained(recipe, left_out, seed))
    tokenizer, _ = testbed.start(recipe.corpus, recipe.model, seed)
    documents, _, queries = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
    project = projector(net.layers, dimension, seed)
    features = [trak_features(net, x, project) for x in (queries, documents)]
    return *features, errors(net.model, documents)
