"""The published experiment on fact tracing (Bao et al. 2025), on pairs that notebook 1 trained.

Its candidates: for each question all documents that state the fact, BM25's first hundred, up to a
hundred that name the same object, and two hundred random ones that all questions share. Its
measures: MRR, and recall of the stating documents among the first ten. Its settings: one
checkpoint, plain scores, and an absolute damping of 1e-4 in both stages:

    s(z) = ∇(−f)(θ₂)ᵀ α (H₂ + α)⁻¹ (H₁ + d)⁻¹ ∇ℓ_z(θ₁),    d = α = 1e-4

up to the factor α, which changes no rank. How strong the damping is depends on the eigenvalues, so
on the model and on how H is normalised: here it is the mean over sequences of the curvature of the
summed loss. The code that was released computes (H₁ + d)⁻¹ of the candidates and does not use it:
its scores are `finetuning_only`. Its gradient similarity has the query at θ₂ and the candidate at
θ₁ (`gradient_dot`), and so has its similarity of mean hidden states (`hidden_states`).
"""

import json
import random

import numpy as np
import torch
from safetensors.torch import load_file

from msif.core.influence import Damping, Scores, Stage, query_gradients
from msif.rivals import representations
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
    expected = torch.from_numpy(searched(case)).float()
    kept = found["bm25/raw"]
    if kept.shape != expected.shape or not torch.allclose(kept, expected, atol=1e-4):
        raise ValueError(
            f"seed {seed}: notebook 3's scores {tuple(kept.shape)} are not of the questions and "
            f"documents of its test-bed, {tuple(expected.shape)}: run notebook 3 again"
        )
    return case, found


def searched(case):
    """BM25's scores (q, N) of question and answer, as notebook 3 has them."""
    asked = [f"{row.get('question', row['prompt'])} {row['answer']}" for row in case.rows]
    return bm25([d["text"] for d in case.bed.corpus.documents], asked)


def among(case, seed, first=100, same_object=100, shared=200):
    """For each question the sorted numbers of its candidates: those of its row, or drawn
    (`lama.candidates`); those that name the same object are documents with it as their own or in
    one of their triples."""
    if all(row.get("candidates") for row in case.rows):
        return [sorted(row["candidates"]) for row in case.rows]
    documents, rng = case.bed.corpus.documents, random.Random(seed)
    common = rng.sample(range(len(documents)), min(shared, len(documents)))
    named = [objects_of(d) for d in documents]
    found = []
    for row, scores in zip(case.rows, searched(case)):
        own = set(row["proponents"])
        others = {n for n, objects in enumerate(named) if row["object"] in objects} - own
        few = lama.candidates(rng, own, scores, others, common, first, same_object)
        found.append(sorted(few))
    return found


def objects_of(document):
    """The set of objects of what a document states: its own, or those of its triples."""
    return {o for _, _, o in document.get("triples", ())} | {document.get("object")}


def by_damping(case, dampings, batch_size=64):
    """{method: {damping: Scores (q, N)}} of multi_stage, finetuning_only and
    single_stage_finetuned with absolute dampings, d = α; one pass over the documents at each model,
    kept in scratch/."""
    key = case.key() | {"dampings": dampings, "batch_size": batch_size}
    kept = scratch.tensors("as-published", key, lambda: _computed(case, dampings, batch_size))
    methods = dict.fromkeys(name.split(" ")[0] for name in kept)

    def scores(method, d):
        return Scores(*(kept[f"{method} {d:g} {part}"] for part in ("values", "norms")))

    return {method: {d: scores(method, d) for d in dampings} for method in sorted(methods)}


def _computed(case, dampings, batch_size):
    q = query_gradients(case.tracked("finetuned"), case.queries)
    both = {f"{d:g}": Damping(d, relative=False) for d in dampings}
    first, second = (case.factors[name] for name in ("pretrained", "finetuned"))
    passed = {d: Stage(second, alpha=x).transfer(q) for d, x in both.items()}
    at_start = {f"finetuning_only {d}": v for d, v in passed.items()}
    at_start |= {f"multi_stage {d}": Stage(first, both[d]).inverse(v) for d, v in passed.items()}
    found = _scored(case, "pretrained", at_start, batch_size)
    at_end = {f"single_stage_finetuned {d}": Stage(second, x).inverse(q) for d, x in both.items()}
    return found | _scored(case, "finetuned", at_end, batch_size)


def _scored(case, model, vectors, batch_size):
    found = score_together(case.tracked(model), case.bed.documents, vectors, batch_size, model)
    values = {f"{name} values": scores.values for name, scores in found.items()}
    return values | {f"{name} norms": scores.norms for name, scores in found.items()}


def hidden_states(case, batch_size=64):
    """Cosine of mean last hidden states, of questions with their answers at θ₂ and of documents at
    θ₁: (q, N)."""
    tuned, base = case.bed.model("finetuned"), case.bed.model("pretrained")
    asked = representations.states(tuned, case.queries, batch_size=batch_size)
    found = representations.states(base, case.bed.documents, batch_size=batch_size)
    unit = torch.nn.functional.normalize
    return unit(asked, dim=1) @ unit(found, dim=1).mT


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
