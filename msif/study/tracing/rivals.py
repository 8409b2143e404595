"""TrackStar and TRAK with every setting that they have, at one model or over the same checkpoints
as ours.

    trackstar                   at θ₂ (`msif.rivals.trackstar`)
    trackstar_pretrained        documents at θ₁
    trackstar_trajectory        documents at each pre-training checkpoint θ_k; the sum, each divided
                                by its standard deviation, as ours over checkpoints
    trak                        at θ₂, one model (`msif.rivals.trak`)
    trak_pretrained             documents at θ₁
    trak_trajectory             documents at each θ_k, which are TRAK's several models

Settings of those with documents before fine-tuning: `query_at`, "own" (queries at the documents'
model too, as published) or "finetuned" (at θ₂, where the answer is given; TrackStar's rows with
them). Of TrackStar: dimension, damping, moments (divide by the optimiser's second moments or not).
Of TRAK: dimension, ridge.

Each function gives (q, n) of each of a list of settings: what they share is computed once.
"""

from msif.core.influence import trajectory
from msif.rivals import trackstar, trak

QUERY_AT = ("own", "finetuned")


def trackstar_at(case, names, settings, batch_size=64):
    """[(q, n) of each setting]: TrackStar with the documents at each of the models `names`; the
    `trajectory` of several. settings: [{"dimension", "damping", "moments", "query_at"}]."""
    parts = [[] for _ in settings]
    for name in names:
        net = case.tracked(name)
        for dimension, moments in dict.fromkeys(map(_kept, settings)):  # features are large
            sides = _sides(case, net, dimension, moments, batch_size)
            found = trackstar.features(net, case.bed.documents, sides, batch_size)
            asked = {}
            for part, x in zip(parts, settings):
                if _kept(x) != (dimension, moments):
                    continue
                if (at := _asking(x, name)) not in asked:
                    asking = case.tracked(at)
                    asked[at] = [
                        trackstar.features(asking, few, sides, batch_size)
                        for few in (case.queries, case.bed.finetuning)
                    ]
                queries, rows = asked[at]
                white = trackstar.whitening(rows, found, damping=x["damping"])
                part.append(trackstar.cosines(queries, found, white))
    return [part[0] if len(part) == 1 else trajectory(part) for part in parts]


def _kept(setting):
    """What of a setting TrackStar's features depend on."""
    return setting["dimension"], setting.get("moments", False)


def _sides(case, net, dimension, moments, batch_size):
    like, documents = next(net.model.parameters()), case.bed.documents
    kept = trackstar.second_moments(net, documents, batch_size) if moments else None
    return trackstar.projections(net.layers, dimension, 0, like, kept)


def trak_at(case, names, settings, batch_size=64):
    """[(q, n) of each setting]: TRAK with the documents at the models `names`. settings:
    [{"dimension", "ridge", "query_at"}]. A smaller dimension takes the first of a larger one's
    projections."""
    layers, largest = case.layers, max(x["dimension"] for x in settings)
    project = trak.projector(layers, largest, 0)
    asked, found, weights = {}, [], []
    for name in names:
        net = case.tracked(name)
        found.append(trak.trak_features(net, case.bed.documents, project, batch_size))
        weights.append(trak.errors(net.model, case.bed.documents, batch_size))
        for at in {_asking(x, name) for x in settings} - asked.keys():
            tracked = case.tracked(at)
            asked[at] = trak.trak_features(tracked, case.queries, project, batch_size)

    def scores(x):
        queries = [asked[_asking(x, name)][:, : x["dimension"]] for name in names]
        return trak.trak(queries, [phi[:, : x["dimension"]] for phi in found], weights, x["ridge"])

    return [scores(x) for x in settings]


def _asking(setting, name):
    """The model of the queries, where the documents are at `name`."""
    at = setting.get("query_at", "own")
    if at not in QUERY_AT:
        raise ValueError(f"query_at is {at!r}; expected one of {QUERY_AT}")
    return name if at == "own" else "finetuned"
