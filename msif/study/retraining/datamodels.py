"""Scores that predict retraining: every method for every query and document, at models of several
seeds.

The linear datamodeling score holds −(1/N) Σ_{z left out} s(z) against f after retraining without
these documents. Beside the methods of `tracing.methods`, at each seed's models:

    multi_stage_refined     the exact Gauss-Newton in place of EK-FAC, as far as `iterations`
                            products go (`dial`)
    multi_stage_source      pre-training as a chain of unrolled segments, one for each checkpoint
                            (`unrolling`)
    multi_stage_adam        EK-FAC in Adam's metric (`adam`)
    representation          cosine of mean hidden states at θ₂, query and answer against document
    multi_stage_shampoo     corrected Shampoo in place of EK-FAC (`tracing.curvatures`)
    trackstar, trak         by projected gradients (`projected`)
    bayesian                covariance over models drawn near θ₁, each fine-tuned (`sampled`)

An ensemble is the mean over seeds; what they disagree about is noise, which `shrunk` takes off.
"""

import torch

from msif.core.influence import Damping, Stage, precondition, query_gradients
from msif.core.layers import weight_matrix
from msif.core.objectives import logit_margin
from msif.curvature import adam
from msif.curvature.unrolling import Unrolled
from msif.rivals import representations
from msif.study import scratch
from msif.study.tracing import methods
from msif.study.tracing.curvatures import at_pretrained
from msif.study.tracing.methods import score_together, scored


def all_scores(case, *, time, **settings):
    """{method/form: (q, N)} of one seed: those of `tracing.methods`, SOURCE's (`time` of
    each segment) and representations."""
    found, alpha = scored(case, **settings), settings["alpha"]
    key = case.key() | {"time": time, "alpha": alpha}
    source = scratch.tensors("source", key, lambda: _source(case, time, alpha))
    tuned = case.bed.model("finetuned")
    similar = representations.cosine(tuned, case.queries, case.bed.documents)
    return found | source | {"representation/raw": similar}


def variants(case, damping, alpha, alphas, times, seed):
    """{name/form}: the multi-stage score of `damping` and `alpha` with one part exchanged,
    candidates at θ₁: fine-tuning's filter (proximal `alphas`, unrolled `times`), pre-training's
    filter (unrolled), the measurement (logit margin), the metric (Adam's)."""

    def make():
        base, tuned, first, last = case.ends
        q = query_gradients(tuned, case.queries)
        inverse, second = Stage(first, Damping(damping)).inverse, Stage(last, alpha=Damping(alpha))
        found = {}
        for a in alphas:
            found[f"proximal α = {a}"] = inverse(Stage(last, alpha=Damping(a)).transfer(q))
        for t in times:
            found[f"unrolled fine-tuning τ = {t}"] = inverse(Unrolled(last, time=t).transfer(q))
        for t in times:
            unrolled = Unrolled(first, time=t)
            found[f"unrolled pre-training τ = {t}"] = unrolled.inverse(second.transfer(q))
        margin = query_gradients(tuned, case.queries, logit_margin)
        found["measurement: logit margin"] = inverse(second.transfer(margin))
        metric = adam.fit(base, case.bed.documents, seed=f"{seed}/adam")
        found["metric: Adam's"] = Stage(metric, Damping(damping)).inverse(second.transfer(q))
        return at_pretrained(case, found)

    tried = {"alphas": list(alphas), "times": list(times)}
    key = case.key() | {"damping": damping, "alpha": alpha, "seed": seed} | tried
    return scratch.tensors("variants", key, make)


def _source(case, time, alpha):
    """Σ over segments of ⟨w_j, ∇ℓ_z(θ_j)⟩, w of the chain of segments and fine-tuning; every
    segment has the same time."""
    names, documents = case.bed.checkpoints, case.bed.documents
    q = query_gradients(case.tracked("finetuned"), case.queries)
    segments = [Unrolled(case.factors[name], time=time) for name in names]
    chain = [*segments, Stage(case.factors["finetuned"], alpha=Damping(alpha))]
    total, normalised = 0.0, 0.0
    for name, w in zip(names, precondition(q, chain)):
        found = score_together(case.tracked(name), documents, {"w": w}, 64)["w"]
        total, normalised = total + found.values, normalised + found.normalised()
    return {"multi_stage_source/raw": total, "multi_stage_source/normalised": normalised}


def implied_alpha(case):
    """α that fine-tuning's own record implies, over each layer's mean eigenvalue.

    The median over layers of −⟨∇J₂(θ₂), θ₂ − θ₁⟩ / ‖θ₂ − θ₁‖², J₂ the mean loss, from the condition
    ∇J₂ + α (θ₂ − θ₁) = 0 of a stage that ends there."""
    base, tuned, _, last = case.ends
    found = []
    gradients = query_gradients(tuned, case.bed.finetuning)  # of −log p, which is the loss
    for name, g in gradients.items():
        before, after = (weight_matrix(x.model.get_submodule(name)) for x in (base, tuned))
        moved = after - before
        alpha = -(g.mean(0) * moved).sum() / moved.square().sum()
        found.append(alpha / last.factors[name].eigenvalues.mean())
    return torch.stack(found).median().item()


def ensemble(tables):
    """[{method/form: (q, N)} of each seed] -> {method/form: mean over seeds}."""
    return {name: torch.stack([table[name] for table in tables]).mean(0) for name in tables[0]}


def shrunk(scores):
    """Mean over seeds of (seeds, q, N), drawn towards 0 by its own standard error, pooled over a
    query's documents: (q, N). Of one seed nothing is known of it: nothing is taken off.

    Most documents have no influence; the sum of their noise would drown the few that have."""
    if len(scores) == 1:
        return scores[0]
    mean, error = scores.mean(0), (scores.var(0) / len(scores)).mean(1, keepdim=True).sqrt()
    return mean.sign() * (mean.abs() - error).clamp(min=0)


def predicted(table, left_out):
    """{name: (q, subsets)}: −(1/N) Σ of the scores (q, N) of the documents left out, (subsets, N)
    bool."""
    return {name: -(x @ left_out.to(x.dtype).mT / x.shape[1]).numpy() for name, x in table.items()}


def statements(corpus):
    """1 for the documents that state a query's fact: (q, N). As a score, it counts left-out
    statements."""
    found = torch.zeros(len(corpus.queries), len(corpus.documents))
    for row, query in zip(found, corpus.queries):
        row[query["proponents"]] = 1
    return found


def union_of_top(scores, queries, count):
    """The documents among the `count` highest of any of the queries (numbers), to be left out: (N,)
    bool."""
    left_out = torch.zeros(scores.shape[1], dtype=torch.bool)
    left_out[scores[queries].topk(count, dim=1).indices.flatten()] = True
    return left_out


def costs(case, recipe, count, settings):
    """{method: forward + backward passes per candidate document and model}, as `methods.costs`.
    TRAK pays for pre-training on half of the documents; `bayesian_scores`, with its count and
    settings, for each draw's steps, its losses and its fine-tuning."""
    found, documents = methods.costs(case), len(case.bed.documents)
    rows = count * recipe.finetuning["epochs"] * len(case.bed.finetuning)
    steps = settings["burn_in"] + (count - 1) * settings["between"]
    read = 2 * steps * settings.get("batch_size", 32)  # at the draw, and where it began
    return found | {
        "multi_stage_source": found["multi_stage_trajectory"],
        "multi_stage_shampoo": found["multi_stage"],
        "trackstar": round(1 + len(case.bed.finetuning) / documents, 2),
        "trak": round(recipe.pretraining["epochs"] / 2 + 1, 2),
        "bayesian": round((read + rows) / documents + 1 + count / 3, 2),
        "representation": round(1 / 3, 2),
        "statements": 0,
    }
