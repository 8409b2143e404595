"""The scores of every kind of fine-tuning by every treatment, as a user has them: from `msif.fit`
and `msif.Stage`."""

from dataclasses import replace

import torch

from msif.api.stages import Stage, fit
from msif.core.influence import Damping, query_gradients
from msif.study import scratch
from msif.study.kinds_of_fine_tuning import treatments
from msif.study.kinds_of_fine_tuning.treatments import AS_FULL, OWN, SINGLE
from msif.study.kinds_of_fine_tuning.tunings import AGAIN, DPO, KINDS, LORA
from msif.study.tracing.methods import score_together
from msif.study.tracing.names import FORMS


def scored(found, *, b, damping, alpha, single_stage_damping, documents=None, batch_size=64):
    """{kind/treatment/form: (q, n)} of a `tunings.Tuned`, all its queries and documents; of `again`
    its own treatment alone. Kept in scratch/.

    b: of DPO. damping: of pre-training, alpha: of all later stages, and of `as full`,
    single_stage_damping: relative to a layer's mean eigenvalue. documents: so many of them, drawn,
    pre-training's factors are fitted on (None: all)."""
    fits = {"b": b, "documents": documents, "batch_size": batch_size}
    settings = {"damping": damping, "alpha": alpha, "single_stage_damping": single_stage_damping}

    def compute():
        table = {}
        for kind in (*KINDS, AGAIN):
            chain, q = chain_of(found, kind, damping=damping, alpha=alpha, **fits)
            w = treatments.vectors(q, chain, alpha)
            if kind == AGAIN:
                w = {OWN: w[OWN]}
            table |= _scores(found, kind, found.base, w, batch_size)
            if kind != AGAIN:
                alone = treatments.single(q, chain[-1].curvature, single_stage_damping)
                table |= _scores(found, kind, found.ends[kind], {SINGLE: alone}, batch_size)
        return table

    return scratch.tensors("kind-scores", found.key() | fits | settings, compute)


def over_settings(found, values, *, b, damping, documents=None, batch_size=64):
    """{kind/treatment/form: (values, q, n)}: scores by `own` and `as full` with each of the values
    as α of all later stages, and by `single` with it as d. Kept in scratch/."""
    fits = {"b": b, "documents": documents, "batch_size": batch_size}

    def compute():
        table = {}
        for kind in KINDS:
            chain, q = chain_of(found, kind, damping=damping, alpha=1.0, **fits)
            both = {f"{t}/{x}": w for x in values for t, w in _both(q, chain, x).items()}
            last = chain[-1].curvature
            alone = {f"{SINGLE}/{x}": treatments.single(q, last, x) for x in values}
            each = _scores(found, kind, found.base, both, batch_size)
            each |= _scores(found, kind, found.ends[kind], alone, batch_size)
            for name, scores in each.items():  # in the order of values
                kind_and_treatment, _, form = name.rsplit("/", 2)
                table.setdefault(f"{kind_and_treatment}/{form}", []).append(scores.cpu())
        return {name: torch.stack(few) for name, few in table.items()}

    key = found.key() | fits | {"damping": damping, "values": list(values)}
    return scratch.tensors("kind-settings", key, compute)


def _both(q, chain, alpha):
    """{treatment: w} of `own` and `as full` with this α in all later stages."""
    first, *later = chain
    later = [replace(x, alpha=Damping(alpha)) for x in later]
    w = treatments.vectors(q, [first, *later], alpha, remainder=False)
    return {name: w[name] for name in (OWN, AS_FULL) if name in w}


def chain_of(found, kind, *, damping, alpha, **fits):
    """([`influence.Stage`] of a kind, pre-training first; ∇(−f) of all queries at its end)."""
    stages = [Stage(found.base, factors(found, **fits)["base"], damping=damping)]
    stages += later_stages(found, kind, alpha=alpha, **fits)
    q = query_gradients(stages[-1].model.tracked, found.bed.queries)
    return [x.core for x in stages], q


def later_stages(found, kind, *, alpha, **fits):
    """The stages of a kind after pre-training: [`msif.Stage`]."""
    kinds = [LORA, DPO] if kind == DPO else [kind]
    fitted = factors(found, **fits)
    return [Stage(found.ends[x], fitted[x], alpha=alpha) for x in kinds]


def refusal(found, **fits):
    """What the stage of adapters says where R counts and it has no α; None where it solves."""
    stage = Stage(found.ends[LORA], factors(found, **fits)[LORA], remainder=True)
    q = query_gradients(stage.model.tracked, found.bed.queries[:1])
    try:
        stage.core.inverse(q)
    except ValueError as error:
        return str(error)
    return None


def factors(found, *, b, documents=None, batch_size=64):
    """{"base" or kind: the factors of that model}, fitted once and kept in scratch/."""
    data = {kind: found.bed.finetuning for kind in found.ends} | {DPO: found.pairs}
    data["base"] = _drawn(found.bed.documents, documents)
    models = found.ends | {"base": found.base}
    more = {DPO: {"start": found.ends[LORA], "b": b}}

    def read(folder):
        return {
            name: fit(model, data[name], folder=folder, batch_size=batch_size, **more.get(name, {}))
            for name, model in models.items()
        }

    key = found.key() | {"b": b, "documents": documents, "batch_size": batch_size}
    return read(scratch.built("kind-factors", key, read))


def _scores(found, kind, model, vectors, batch_size):
    """{kind/treatment/form: (q, n)} of the documents at a model, by one pass."""
    documents = found.bed.documents
    scores = score_together(model.tracked, documents, dict(vectors), batch_size, f"{kind}: scores")
    return {
        f"{kind}/{name}/{form}": values.contiguous()
        for name, x in scores.items()
        for form, values in zip(FORMS, (x.values, x.normalised()))
    }


def _drawn(documents, count):
    if count is None or count >= len(documents):
        return documents
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))
    return [documents[n] for n in order[:count].sort().values]
