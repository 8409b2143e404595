"""Fact tracing: every method's score of every pre-training document for every query.

All methods measure f at θ₂ unless they say otherwise, take the candidate's gradient at the model named, and are inner
products ⟨w, ∇ℓ_z⟩; they differ in w alone, so that all methods at one model share one pass over the candidates:

    gradient_dot              w = q                        q = ∇(−f)(θ₂), candidate at θ₁
    pretraining_only          w = (H₁ + d)⁻¹ q             T₂ := I, as if fine-tuning changed nothing
    finetuning_only           w = T₂ q                     H₁⁻¹ := I
    multi_stage               w = (H₁ + d)⁻¹ T₂ q
    single_stage_pretrained   w = (H₁ + d)⁻¹ ∇(−f)(θ₁)     query and candidate at θ₁
    single_stage_finetuned    w = (H₂ + d₂)⁻¹ q            query and candidate at θ₂
    gradient_dot_finetuned    w = q                        query and candidate at θ₂
    …_trajectory              the sum over pre-training checkpoints, each divided by its standard deviation (no unit)
"""
import torch

from msif.influence import Damping, Scores, Stage, precondition, query_gradients, score, trajectory


def query_vectors(q, pretraining, finetuning, damping, alpha):
    """{method: w} of the methods whose candidates stand at one pre-training model; pretraining, finetuning: curvatures."""
    first, identity = Stage(pretraining, Damping(damping)), Stage(pretraining.identity())
    second = Stage(finetuning, alpha=Damping(alpha))
    return {"gradient_dot": q, "pretraining_only": first.inverse(q),
            "finetuning_only": precondition(q, [identity, second])[0], "multi_stage": precondition(q, [first, second])[0]}


def score_together(model, layers, candidates, vectors, batch_size, title=None):
    """{method: Scores} for {method: w}, by one pass over the candidates."""
    names = list(next(iter(vectors.values())))
    stacked = {name: torch.cat([w[name] for w in vectors.values()]) for name in names}
    found = score(model, layers, candidates, stacked, batch_size=batch_size, title=title)
    sizes = [len(w[names[0]]) for w in vectors.values()]
    return {method: Scores(values, found.norms) for method, values in zip(vectors, found.values.split(sizes))}


def all_methods(bed, layers, factors, queries, *, damping, alpha, single_stage_damping, batch_size=64, title=None):
    """{method: (raw, normalised)}, each (q, n), for a `testbed.Testbed` and {model name: EKFAC} of its models.

    damping d, alpha α and single_stage_damping d₂ are relative to each layer's mean eigenvalue."""
    tuned = bed.model("finetuned")
    q = query_gradients(tuned, layers, queries)
    own = Stage(factors["finetuned"], Damping(single_stage_damping))
    found = score_together(tuned, layers, bed.documents, {"gradient_dot_finetuned": q, "single_stage_finetuned": own.inverse(q)},
                           batch_size, title and f"{title}: finetuned")
    steps = {"multi_stage": [], "pretraining_only": []}
    for name in bed.checkpoints:
        model = bed.model(name)
        vectors = query_vectors(q, factors[name], factors["finetuned"], damping, alpha)
        if name == "pretrained":
            first = Stage(factors[name], Damping(damping))
            vectors["single_stage_pretrained"] = first.inverse(query_gradients(model, layers, queries))
        else:
            vectors = {method: vectors[method] for method in steps}
        here = score_together(model, layers, bed.documents, vectors, batch_size, title and f"{title}: {name}")
        for method, scores in steps.items():
            scores.append(here[method])
    both = {method: (s.values, s.normalised()) for method, s in (found | here).items()}
    return both | {f"{method}_trajectory": (trajectory([s.values for s in scores]), trajectory([s.normalised() for s in scores]))
                   for method, scores in steps.items()}


def cost(fits, scored, documents):
    """Forward + backward passes per candidate document, a backward counted as two forwards.

    fits: (sequences, samples) of each EK-FAC fit, two passes of one forward and `samples` backwards each; scored: passes
    over all `documents` candidates."""
    return round((sum(2 * n * (1 + 2 * samples) / 3 for n, samples in fits)) / documents + scored, 2)
