"""Factors and scores of a pair of models that fills a GPU, in steps that survive a kill.

case       tracked layers, and factors of both stages in as many partitions of the layers as the
           memory asks for: a `Case`, of a pair of `msif.study.beds.pairs`
chain      the two stages with damping and α, as published or as recommended here
scored     every query's own candidates, some queries at a time
details    one query's scores of a few documents, by token and by layer
"""

from dataclasses import asdict
from functools import partial

from msif.core.data import digest
from msif.core.influence import Damping, Stage, score, token_scores
from msif.core.layers import Tracked, tracked_layers
from msif.core.queries import preconditioned
from msif.scale import fitting
from msif.study import scratch
from msif.study.beds import pairs
from msif.study.tracing.candidates import candidate_scores
from msif.study.tracing.case import Case

# Damping of pre-training, and α. "paper": Bao et al. 2025, E3, absolute; their normalisation of the
# factors is another, so that the numbers are the same and their strength is not. "recommended":
# relative to each layer's mean eigenvalue.
SETTINGS = {
    "paper": (Damping(1e-4, relative=False), Damping(2e-4, relative=False)),
    "recommended": (Damping(1e-3), Damping(0.1)),
}


def case(bed, *, pattern=None, per_head=False, **fit):
    """`Case` of the pair with all its queries, the factors fitted in scratch/ where they are not
    there yet.

    fit: of `fitting.fit` (memory, batch_size, labels, samples, seed, keep, every); one model at a
    time is on the device. Raises what that raises."""
    layers = tracked_layers(pairs.outline(**pairs.models(bed)["finetuned"]), pattern, per_head)
    data = {"pretrained": pairs.factor_documents(bed), "finetuned": bed.finetuning}
    factors = {name: fitted(bed, name, layers, x, **fit) for name, x in data.items()}
    return Case(bed, layers, factors, bed.queries)


def chain(case, setting):
    """The two stages with damping and α of SETTINGS, or with a pair of `Damping` of one's own."""
    damping, alpha = SETTINGS[setting] if isinstance(setting, str) else setting
    return [
        Stage(case.factors["pretrained"], damping),
        Stage(case.factors["finetuned"], alpha=alpha),
    ]


def scored(case, chains, *, at_once=4, batch_size=8, title=None):
    """{name: (raw, normalised)}, each (q, chunks) float32 on the CPU: scores of each query's own
    candidates, −inf elsewhere.

    chains: {name: list of `influence.Stage`}: two stages score a chunk at the pre-trained model;
    one, of the fine-tuned model, scores it there (single-stage). at_once: queries whose vectors, a
    float32 number for each tracked weight, are held together; a group's scores are kept in
    scratch/, so that a killed run goes on with the next group. Positive = proponent, in nats per
    unit of document weight; normalised: divided by the chunk's gradient norm. Raises ValueError for
    a chain of another length, and as `candidates.candidate_scores` does."""
    for name, stages in chains.items():
        if len(stages) not in (1, 2):
            raise ValueError(
                f"{name} has {len(stages)} stages; expected two, or the fine-tuned model's one"
            )
    group = partial(_group, chains=chains, batch_size=batch_size, title=title)
    return candidate_scores(case, group, at_once)


def details(case, stages, query, chunks, batch_size=8):
    """(`influence.Scores` with values (1, n) and layers {name: (1, n)}, token scores (n, S)) of one
    query (its place in case.queries) and the chunks numbered `chunks`. Both kinds of parts sum to
    the values."""
    documents = [case.bed.documents[n] for n in chunks]
    w = preconditioned(case.tracked("finetuned"), [case.queries[query]], stages)
    net = case.tracked(_candidates_model(stages))
    found = score(net, documents, w, batch_size=batch_size, per_layer=True)
    return found, token_scores(net, documents, w, batch_size=batch_size)[0]


def _group(case, chains, batch_size, title):
    found = {}
    for name, stages in chains.items():
        key = case.key() | {"stages": [_described(stage) for stage in stages]}
        own = title and f"{title} {name}"
        kept = scratch.tensors(
            "pair-scores", key, lambda: _both_forms(case, stages, batch_size, own)
        )
        found[name] = kept["raw"], kept["normalised"]
    return found


def _described(stage):
    """What the scores depend on of one `influence.Stage`."""
    damping, alpha = asdict(stage.damping), asdict(stage.alpha)
    return {"factors": stage.curvature.header, "damping": damping, "alpha": alpha}


def _both_forms(case, stages, batch_size, title):
    w = preconditioned(case.tracked("finetuned"), case.queries, stages, batch_size=batch_size)
    net = case.tracked(_candidates_model(stages))
    scores = score(net, case.bed.documents, w, batch_size=batch_size, title=title)
    return {"raw": scores.values.cpu(), "normalised": scores.normalised().cpu()}


def _candidates_model(stages):
    return "pretrained" if len(stages) == 2 else "finetuned"


def fitted(bed, name, layers, sequences, **fit):
    """The factors of one model, in a folder that is named by all that they depend on."""
    key = [
        digest(sequences),
        pairs.models(bed)[name],
        [str(x) for x in layers],
        {k: v for k, v in sorted(fit.items()) if k not in ("memory", "keep", "every")},
    ]
    folder = scratch.place("pair-factors", key, fitting.__name__)
    return fitting.fit(folder, Tracked(bed.model(name), layers), sequences, title=f"{name}:", **fit)
