"""Fact tracing: every method's score of every pre-training document for every query.

A score is a sum over layers: a large model's can be had for some layers at a time (`parts`), and
the vectors of `together` queries for one group of layers are held together, for one pass over
candidates a group of layers, group of queries and model.

All methods measure f at θ₂ unless they say otherwise, take the candidate's gradient at the model
named, and are inner products ⟨w, ∇ℓ_z⟩; they differ in w alone, so that all methods at one model
share one pass over the candidates:

    gradient_dot              w = q                       q = ∇(−f)(θ₂), candidate at θ₁
    pretraining_only          w = (H₁ + d)⁻¹ q            T₂ := I, as if fine-tuning changed nothing
    finetuning_only           w = T₂ q                    H₁⁻¹ := I
    multi_stage               w = (H₁ + d)⁻¹ T₂ q
    single_stage_pretrained   w = (H₁ + d)⁻¹ ∇(−f)(θ₁)    query and candidate at θ₁
    single_stage_finetuned    w = (H₂ + d₂)⁻¹ q           query and candidate at θ₂
    gradient_dot_finetuned    w = q                       query and candidate at θ₂
    gradient_dot_pretrained   w = ∇(−f)(θ₁)               query and candidate at θ₁
    …_trajectory              the sum over pre-training checkpoints θ_k in place of θ₁, each divided
                              by its standard deviation (no unit), of the first five. Of
                              gradient_dot it is not TracInCP, as its query stays at θ₂; of
                              single_stage_pretrained the query is at θ_k too
    tracincp                  Σ_k η_k ⟨∇(−f)(θ_k), ∇ℓ_z(θ_k)⟩, as published (`rivals.tracin`)
"""

import math
from dataclasses import replace

import torch

from msif.core.data import encode_answers
from msif.core.influence import (
    Damping,
    Scores,
    Stage,
    precondition,
    query_gradients,
    score,
    token_scores,
    trajectory,
)
from msif.rivals.retrieval import bm25
from msif.rivals.tracin import tracincp
from msif.study import metrics, scratch
from msif.study.beds import testbed
from msif.study.tracing.names import FORMS

TOGETHER = 12  # queries that are scored together where layers are scored in parts, in 24 GB
ON_GPU = 48  # the same on a GPU of 80 GB
HELD = 6  # vectors of one query that are held together at most, at a model of pre-training
# The methods with a …_trajectory.
ALONG_PRETRAINING = (
    "multi_stage",
    "pretraining_only",
    "finetuning_only",
    "gradient_dot",
    "single_stage_pretrained",
)


def together():
    """How many queries are scored together where layers are scored in parts."""
    return TOGETHER if testbed.where() == "cpu" else ON_GPU


def query_vectors(q, pretraining, finetuning, damping, alpha):
    """{method: w} of the methods whose candidates stand at one pre-training model; pretraining,
    finetuning: curvatures."""
    first, identity = Stage(pretraining, Damping(damping)), Stage(pretraining.identity())
    second = Stage(finetuning, alpha=Damping(alpha))
    return {
        "gradient_dot": q,
        "pretraining_only": first.inverse(q),
        "finetuning_only": precondition(q, [identity, second])[0],
        "multi_stage": precondition(q, [first, second])[0],
    }


def score_together(tracked, candidates, vectors, batch_size, title=None):
    """{method: Scores} for {method: w}, by one pass over the candidates, on the CPU; `vectors` is
    emptied."""
    sizes = {method: len(next(iter(w.values()))) for method, w in vectors.items()}
    stacked = _stacked(vectors)
    found = score(tracked, candidates, stacked, batch_size=batch_size, title=title)
    split, norms = found.values.cpu().split(list(sizes.values())), found.norms.cpu()
    return {method: Scores(values, norms) for method, values in zip(sizes, split)}


def _stacked(vectors):
    """{layer: (q of all methods, o, i)}, laid out as `score` reads it; each layer's vectors are let
    go of as they are stacked, so that nothing is held twice."""
    remaining = [dict(w) for w in vectors.values()]
    vectors.clear()
    names = list(remaining[0])
    return {name: torch.cat([w.pop(name).mT for w in remaining]).mT for name in names}


def all_methods(case, *, parts=1, title="", rates=None, **settings):
    """{method: (raw, normalised)}, each (q, n).

    settings: damping, alpha and single_stage_damping, d, α and d₂ relative to each layer's
    mean eigenvalue, and batch_size. parts: groups of layers whose vectors are held together
    (`Case.parts`), fewer where there are fewer vectors, for `together` queries at a time; with
    several, the scores of each group of both at each model are kept in scratch/. rates: the
    learning rate of each pre-training checkpoint, for TracInCP; None: constant."""
    path = case.bed.checkpoints
    at = {name: _in_parts(case, name, parts, title, settings) for name in ("finetuned", *path)}
    last = at["finetuned"] | at["pretrained"]
    both = {method: (s.values, s.normalised()) for method, s in last.items()}
    for method in ALONG_PRETRAINING:
        found = [at[name][method] for name in path]
        both[f"{method}_trajectory"] = (
            trajectory([s.values for s in found]),
            trajectory([s.normalised() for s in found]),
        )
    dots = [at[name]["gradient_dot_pretrained"] for name in path]
    both["tracincp"] = (
        tracincp([s.values for s in dots], rates),
        tracincp([s.normalised() for s in dots], rates),
    )
    return both


def _in_parts(case, name, parts, title, settings):
    """{method: Scores} of the candidates at one model."""
    if parts == 1:
        return _at_model(case, name, title=f"{title} {name}", **settings)
    few = [case.queries[i : i + together()] for i in range(0, len(case.queries), together())]
    found = [
        _layers_in_parts(
            replace(case, queries=q), name, parts, f"{title} {name} {k}/{len(few)}", settings
        )
        for k, q in enumerate(few, 1)
    ]
    norms = next(iter(found[0].values())).norms
    return {
        method: Scores(torch.cat([scores[method].values for scores in found]), norms)
        for method in found[0]
    }


def _layers_in_parts(case, name, parts, title, settings):
    """The same of a few queries, a group of layers after the other."""
    found, parts = [], _fewer(parts, 2 / HELD if name == "finetuned" else 1)
    for k, part in enumerate(case.parts(parts), 1):

        def compute(part=part, shown=f"{title}, layers {k}/{parts}"):
            scores = _at_model(part, name, title=shown, **settings)
            found = {method: s.values for method, s in scores.items()}
            return found | {"norms": next(iter(scores.values())).norms}

        kept = scratch.tensors("scores-part", part.key() | settings | {"model": name}, compute)
        norms = kept.pop("norms")
        found.append({method: Scores(values, norms) for method, values in kept.items()})
    return {method: added([scores[method] for scores in found]) for method in found[0]}


def _at_model(case, name, *, damping, alpha, single_stage_damping, batch_size=64, title=None):
    """{method: Scores} of the candidates at one model, by one pass over them."""
    tuned, net = case.tracked("finetuned"), case.tracked(name)
    q = query_gradients(tuned, case.queries)
    if name == "finetuned":
        own = Stage(case.factors["finetuned"], Damping(single_stage_damping))
        vectors = {"gradient_dot_finetuned": q, "single_stage_finetuned": own.inverse(q)}
    else:
        vectors = query_vectors(q, case.factors[name], case.factors["finetuned"], damping, alpha)
        own, first = query_gradients(net, case.queries), Stage(case.factors[name], Damping(damping))
        vectors["gradient_dot_pretrained"] = own
        vectors["single_stage_pretrained"] = first.inverse(own)
    return score_together(net, case.bed.documents, vectors, batch_size, title)


def _fewer(parts, share):
    """Groups of layers for a share of the vectors that `parts` groups are meant for."""
    return math.ceil(parts * min(1, share))


def added(parts):
    """The `Scores` of layers that were scored in groups, on the CPU."""
    norms = sum(s.norms.square() for s in parts).sqrt()
    return Scores(sum(s.values for s in parts).cpu(), norms.cpu())


def multi_stage(case, queries, documents, damping, alpha, *, parts=1, batch_size=64, title=None):
    """`Scores` of documents at θ₁ for queries at θ₂, none of which need be of the corpus. parts:
    groups of layers for `together` queries, by all methods (`all_methods`); 1: one group."""
    if parts > 1:
        needed = math.ceil(parts * 3 / HELD * len(queries) / together())
        parts = min(needed, len(case.layers))

    def of_part(part):
        q = query_gradients(part.tracked("finetuned"), queries)
        w = precondition(q, part.chain(damping, alpha))[0]
        net = part.tracked("pretrained")
        return score(net, documents, w, batch_size=batch_size, title=title)

    return added([of_part(part) for part in case.parts(parts)])


def scored(case, **settings):
    """{method/form: (q, n)}: `all_methods` in both forms, and bm25/raw on question + answer; kept
    in scratch/."""

    def compute():
        found = all_methods(case, title="scores of", **settings)
        texts = [d["text"] for d in case.bed.corpus.documents]
        asked = [f"{row.get('question', row['prompt'])} {row['answer']}" for row in case.rows]
        found["bm25"] = (torch.from_numpy(bm25(texts, asked)),)
        return {
            f"{method}/{form}": x.clone(memory_format=torch.contiguous_format)
            for method, pair in found.items()
            for form, x in zip(FORMS, pair)
        }

    return scratch.tensors("scores", case.key() | settings, compute)


def grid(case, dampings, alphas, batch_size=64):
    """{form: MRR of the multi-stage score (dampings, alphas)}, from one pass over the
    candidates."""
    q = query_gradients(case.tracked("finetuned"), case.queries)
    vectors = {(d, a): precondition(q, case.chain(d, a))[0] for d in dampings for a in alphas}
    found = _mrr(case, "pretrained", vectors, batch_size)
    return {form: [[found[form][d, a] for a in alphas] for d in dampings] for form in FORMS}


def single_stage_grid(case, dampings, batch_size=64):
    """{form: MRR of the single-stage score at the fine-tuned model for each damping}: as much
    tuning for the baseline."""
    q = query_gradients(case.tracked("finetuned"), case.queries)
    vectors = {d: Stage(case.factors["finetuned"], Damping(d)).inverse(q) for d in dampings}
    found = _mrr(case, "finetuned", vectors, batch_size)
    return {form: [found[form][d] for d in dampings] for form in FORMS}


def _mrr(case, name, vectors, batch_size):
    """{form: {setting: MRR}} of query vectors {setting: w} with the candidates at one model."""
    found = score_together(case.tracked(name), case.bed.documents, vectors, batch_size, "grid")
    means = {form: {} for form in FORMS}
    for setting, scores in found.items():
        for form, values in zip(FORMS, (scores.values, scores.normalised())):
            ranks = metrics.reciprocal_ranks(values.numpy(), case.proponents)
            means[form][setting] = ranks.mean()
    return means


def top_documents(case, query, values, damping, alpha, count=5):
    """The `count` documents with the highest multi-stage scores `values` (n,) of one query, split
    over their tokens.

    Dicts with rank (from 1), document (number), score, words, scores (one per word, they sum to
    score), note (the kind).
    """
    decode, documents = case.bed.tokenizer.decode, case.bed.documents
    q = query_gradients(case.tracked("finetuned"), [query])
    w = precondition(q, case.chain(damping, alpha))[0]
    best = values.argsort(descending=True)[:count].tolist()
    split = token_scores(case.tracked("pretrained"), [documents[n] for n in best], w)[0]
    return [
        {
            "rank": rank,
            "document": n,
            "score": values[n].item(),
            "note": case.bed.corpus.documents[n]["kind"],
            "words": [decode([i]) for i in documents[n].input_ids],
            "scores": row[: len(documents[n].input_ids)].tolist(),
        }
        for rank, (n, row) in enumerate(zip(best, split), 1)
    ]


def traced_rows(case, rows, damping, alpha, batch_size=64):
    """[(row, scores (n,), top documents)] of rows {"prompt", "answer"} that are no queries of the
    corpus, by the multi-stage score."""
    queries = encode_answers(
        [r["prompt"] for r in rows],
        [r["answer"] for r in rows],
        case.bed.tokenizer,
        case.bed.model("finetuned").config.max_position_embeddings,
    )
    found = multi_stage(case, queries, case.bed.documents, damping, alpha, batch_size=batch_size)
    return [
        (row, values, top_documents(case, query, values, damping, alpha))
        for row, query, values in zip(rows, queries, found.values)
    ]


def costs(case):
    """{method: forward + backward passes per candidate document}, a backward counted as two
    forwards.

    Counted: the two passes of every fit, and the passes over the candidates; a fine-tuning row
    counts as a document. Not counted: the queries' own gradients, the products with factors and the
    eigendecompositions."""

    def fit(*names):
        headers = [case.factors[name].header for name in names]
        passes = sum(2 * h["sequences"] * (1 + 2 * h["samples"]) / 3 for h in headers)
        return passes / len(case.bed.documents)

    path, one, two = case.bed.checkpoints, fit("pretrained"), fit("finetuned")
    found = {
        "gradient_dot": 1,
        "gradient_dot_finetuned": 1,
        "gradient_dot_pretrained": 1,
        "pretraining_only": 1 + one,
        "single_stage_pretrained": 1 + one,
        "finetuning_only": 1 + two,
        "single_stage_finetuned": 1 + two,
        "multi_stage": 1 + one + two,
        "bm25": 0,
        "gradient_dot_trajectory": len(path),
        "tracincp": len(path),
        "finetuning_only_trajectory": len(path) + two,
        "pretraining_only_trajectory": len(path) + fit(*path),
        "single_stage_pretrained_trajectory": len(path) + fit(*path),
        "multi_stage_trajectory": len(path) + fit(*path) + two,
    }
    return {method: round(float(cost), 2) for method, cost in found.items()}
