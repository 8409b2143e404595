"""The published experiment on fact tracing (Bao et al. 2025), on pairs that notebook 1 trained.

Its candidates: for each question all documents that state the fact, BM25's first hundred, up to a
hundred that name the same object, and two hundred random ones that all questions share. Its
measures: MRR, and recall of the stating documents among the first ten. Its settings: one
checkpoint, plain scores, and an absolute damping of 1e-4 in both stages:

    s(z) = ∇(−f)(θ₂)ᵀ α (H₂ + α)⁻¹ (H₁ + d)⁻¹ ∇ℓ_z(θ₁),    d = α = 1e-4

How strong that is depends on the eigenvalues, so on the model and on how H is normalised: here it
is the mean over sequences of the curvature of the summed loss.
"""

import json
import random

import numpy as np
from safetensors.torch import load_file

from msif.core.influence import Damping, Scores, Stage, precondition, query_gradients
from msif.rivals.retrieval import bm25
from msif.study import metrics, params, scratch
from msif.study.corpora import lama
from msif.study.paths import results
from msif.study.tracing.case import load_case
from msif.study.tracing.methods import score_together
from msif.study.tracing.names import FORMS

DAMPING = 1e-4
AT_TOP = 10  # of which recall is


def traced(profile, seed):
    """(the `Case` of one seed, notebook 3's scores {method/form: (q, N)} of it). Raises ValueError
    where these are of other questions or documents."""
    how = params.section("03_fact_tracing", profile)
    layers = json.loads(results(profile, "factors", "layers.json").read_text())
    own = f"seed-{seed}"
    folders = results(profile, "testbed", own), results(profile, "factors", own)
    case = load_case(*folders, layers, how["only_correct"], how["queries"])
    found = load_file(results(profile, "fact_tracing", own) / "scores.safetensors")
    shape = len(case.queries), len(case.bed.documents)
    if wrong := [name for name, x in found.items() if tuple(x.shape) != shape]:
        raise ValueError(
            f"seed {seed}: notebook 3's scores {wrong[0]} are of {tuple(found[wrong[0]].shape)} "
            f"questions and documents, the test-bed has {shape}: run notebook 3 again"
        )
    return case, found


def among(case, seed, first=100, same_object=100, shared=200):
    """For each question the sorted numbers of its candidates (`lama.candidates`); those that name
    the same object are documents with it as their own or in one of their triples."""
    documents, rng = case.bed.corpus.documents, random.Random(seed)
    common = rng.sample(range(len(documents)), min(shared, len(documents)))
    asked = [f"{row.get('question', row['prompt'])} {row['answer']}" for row in case.rows]
    search = bm25([d["text"] for d in documents], asked)
    named = [_objects(d) for d in documents]
    found = []
    for row, scores in zip(case.rows, search):
        own = set(row["proponents"])
        others = {n for n, objects in enumerate(named) if row["object"] in objects} - own
        few = lama.candidates(rng, own, scores, others, common, first, same_object)
        found.append(sorted(few))
    return found


def _objects(document):
    return {o for _, _, o in document.get("triples", ())} | {document.get("object")}


def by_damping(case, dampings, batch_size=64):
    """{method: {damping: Scores (q, N)}} of multi_stage and single_stage_finetuned with absolute
    dampings, d = α for the former; one pass over the documents at each model, kept in scratch/."""
    key = case.key() | {"dampings": dampings, "batch_size": batch_size}
    kept = scratch.tensors("as-published", key, lambda: _computed(case, dampings, batch_size))
    methods = dict.fromkeys(name.split(" ")[0] for name in kept)

    def scores(method, d):
        return Scores(*(kept[f"{method} {d:g} {part}"] for part in ("values", "norms")))

    return {method: {d: scores(method, d) for d in dampings} for method in methods}


def _computed(case, dampings, batch_size):
    q = query_gradients(case.tracked("finetuned"), case.queries)
    both = {d: Damping(d, relative=False) for d in dampings}
    first, second = (case.factors[name] for name in ("pretrained", "finetuned"))

    def chain(d):
        return [Stage(first, d), Stage(second, alpha=d)]

    vectors = {
        ("multi_stage", "pretrained"): {f"{d:g}": precondition(q, chain(both[d]))[0] for d in both},
        ("single_stage_finetuned", "finetuned"): {
            f"{d:g}": Stage(second, both[d]).inverse(q) for d in both
        },
    }
    found = {}
    for (method, model), w in vectors.items():
        scored = score_together(case.tracked(model), case.bed.documents, w, batch_size, method)
        for d, scores in scored.items():
            found[f"{method} {d} values"], found[f"{method} {d} norms"] = (
                scores.values,
                scores.norms,
            )
    return found


def both_forms(scores):
    """{form: (q, N)} of `Scores`."""
    return dict(zip(FORMS, (scores.values, scores.normalised())))


def strength(case, damping=DAMPING):
    """{stage: (layers,)}: an absolute damping as a multiple of each layer's mean eigenvalue."""
    return {
        name: np.array([damping / float(x.eigenvalues.mean()) for x in factors.factors.values()])
        for name, factors in case.factors.items()
        if name in ("pretrained", "finetuned")
    }


def measured(tables, cases, candidates):
    """{column: {"mrr" and "recall": one (q,) array a seed}} of scores {seed: {column: (q, N)}},
    each question's ranks among its own candidates."""
    found = {column: {"mrr": [], "recall": []} for column in next(iter(tables.values()))}
    for seed, table in tables.items():
        own = cases[seed].proponents
        for column, values in table.items():
            inside = metrics.within(values, candidates[seed])
            found[column]["mrr"].append(metrics.reciprocal_ranks(inside, own))
            found[column]["recall"].append(metrics.recalls(inside, own, AT_TOP))
    return found
