"""Differentiation through both trainings: how f changes with the weight of a document that many
steps used.

A step of either stage is AdamW on L = (1/size) Σ_z w_z ℓ_z, with g = ∇L, rate η and decay λ, as
torch.optim.AdamW takes it:

    m′ = β₁m + (1−β₁)g,   v′ = β₂v + (1−β₂)g²,   c = 1 − β^step,
    d = √(v′/c₂) + ε,     θ′ = (1 − ηλ)θ − (η/c₁) m′/d

Going back from f(θ₂), with x̄ = df/dx, a step turns (θ̄′, m̄′, v̄′) into (θ̄, m̄, v̄) and adds to
the scores of its documents:

    m̄₊ = m̄′ − (η/c₁) θ̄′/d,   v̄₊ = v̄′ + (η/c₁) θ̄′ m′/(2 d² √(c₂v′)),
    ḡ = (1−β₁)m̄₊ + 2(1−β₂) g v̄₊,
    θ̄ = (1 − ηλ)θ̄′ + H ḡ,   m̄ = β₁m̄₊,   v̄ = β₂v̄₊,   df/dw_z += ⟨∇ℓ_z, ḡ⟩ / size

Each stage has an optimiser of its own, so that only θ̄ passes from fine-tuning to pre-training. H
is the curvature of the batch:

    "hessian"       ∇²L: the exact derivative. Where a small change of the start grows from step to
                    step, as at high rates, it is large, and holds for very small changes alone.
    "gauss_newton"  E_z[JᵀH_out J] at the same steps: the network counts as linear about its
                    trajectory, which leaves out what grows. Adam's normalisation (v̄) is kept.

Sign: positive = proponent. Unit: nats per unit of weight, where every document weighs 1 in
`training.train`: −Σ of the scores of left-out documents estimates f without them − f with them.
That is 1/N of a score of `influence`, where each weighs 1/N. Source: Ilyas & Engstrom 2025, "MAGIC:
Near-Optimal Data Attribution for Deep Learning" (arXiv 2504.16430), for the Hessian.
"""

from dataclasses import dataclass
from inspect import signature

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from tqdm import tqdm

from msif.core.data import NO_LOSS, collate
from msif.core.models import logits
from msif.core.objectives import align, log_probability, loss
from msif.core.resources import require
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.training import train


@dataclass(frozen=True)
class Step:
    """One step of AdamW: θ before it, m′ and v′ after it, all (P,); its number from 1; its
    parameter group's settings."""

    theta: torch.Tensor
    m: torch.Tensor
    v: torch.Tensor
    number: int
    rate: float
    betas: tuple
    eps: float
    decay: float


def scores(recipe, seed, queries, curvature="hessian", epochs=None, at_once=8):
    """df/dw_z of every pre-training document, (q, N) float32, positive = proponent, in nats per
    unit of weight (each weighs 1).

    recipe: `retraining.Recipe`; f: log-probability of the answer at θ₂ of
    `retraining.retrained(recipe, nothing, seed)`. queries: numbers of the corpus's queries,
    `at_once` of which are computed and kept in scratch/ together. epochs: the weights act in that
    many last epochs of pre-training (all by default). A query costs about two forward and backward
    passes a step back ("gauss_newton": 1.3). Raises ValueError for a query, curvature or number of
    epochs that is not there, MemoryError before training if its steps do not fit.
    """
    known = len(recipe.corpus.queries)
    if bad := [query for query in queries if not 0 <= query < known]:
        raise ValueError(
            f"query {bad[0]}: expected numbers from 0 to {known - 1}, the corpus's queries"
        )
    torch.set_num_threads(1)  # equal numbers on any machine, as in retraining
    groups = [list(queries[i : i + at_once]) for i in range(0, len(queries), at_once)]
    return torch.cat([_kept(recipe, seed, group, curvature, epochs) for group in groups])


def _kept(recipe, seed, queries, curvature, epochs):
    def compute():
        tokenizer, net = testbed.start(recipe.corpus, recipe.model, seed)
        documents, rows, asked = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
        stages = [(documents, recipe.pretraining), (rows, recipe.finetuning)]
        few, title = [asked[i] for i in queries], "back through training"
        return {"scores": differentiated(net, stages, few, seed, curvature, epochs, title)[0]}

    settings = {"seed": seed, "queries": queries, "curvature": curvature, "epochs": epochs}
    return scratch.tensors("unrolled", recipe.key() | settings, compute)["scores"]


def differentiated(model, stages, queries, seed=0, curvature="hessian", epochs=None, title=None):
    """Train the model in place through all stages, to θ₂, and go back: [(q, N) of stage 1, (q, M)
    of stage 2, …].

    stages: pairs (sequences, the settings of `training.train`, without weights). queries: sequences
    whose f = Σ log p(answer) is differentiated. Sign, unit, epochs (of the first stage) and what is
    raised as for `scores`, in the precision of the model. title: of the progress bars
    (None: silent).
    """
    orders = [_order(len(data), seed, settings) for data, settings in stages]
    _check(model, stages, curvature, epochs, steps=sum(map(len, orders)))
    records = [recorded(model, data, seed, settings) for data, settings in stages]
    all_epochs = stages[0][1]["epochs"]
    walked = (epochs or all_epochs) * len(orders[0]) // all_epochs
    orders[0], records[0] = orders[0][-walked:], records[0][-walked:]
    trained = parameters_to_vector(model.parameters()).detach()
    bar_theta, found, at_batch = _query_gradients(model, queries), [], CURVATURES[curvature]
    for (data, _), order, steps in reversed(list(zip(stages, orders, records, strict=True))):
        bar_theta, values = _stage_back(model, data, steps, order, bar_theta, at_batch, title)
        found.insert(0, values)
    vector_to_parameters(trained, model.parameters())
    return found


def _check(model, stages, curvature, epochs, steps):
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}: expected one of {', '.join(CURVATURES)}")
    if not (epochs is None or 1 <= epochs <= stages[0][1]["epochs"]):
        raise ValueError(
            f"epochs={epochs}: expected 1 to {stages[0][1]['epochs']}, those of the first stage, "
            "or None for all"
        )
    if any("weights" in settings for _, settings in stages):
        raise ValueError(
            "weights in the settings of a stage: expected none, as the derivative is taken where "
            "each document weighs 1"
        )
    size = sum(p.nbytes for p in model.parameters())
    require(
        memory=3 * steps * size, what=f"keeping {steps} steps of AdamW, three times the model each"
    )


def recorded(model, sequences, seed, settings):
    """Train in place by `training.train`, and return each `Step` that its optimiser made."""
    steps, before = [], []

    def keep(optimiser, *_):
        (group,) = optimiser.param_groups
        states = [optimiser.state[p] for p in group["params"]]
        m, v = (_flat([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq"))
        settings = (group[name] for name in ("lr", "betas", "eps", "weight_decay"))
        steps.append(Step(before.pop(), m, v, len(steps) + 1, *settings))

    def remember(*_):
        before.append(parameters_to_vector(model.parameters()).detach())

    hooks = [register_optimizer_step_pre_hook(remember), register_optimizer_step_post_hook(keep)]
    try:
        train(model, sequences, seed=seed, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


def _order(count, seed, settings):
    """The batches of `training.train`: numbers of sequences, one tensor a step."""
    size = settings.get("batch_size", signature(train).parameters["batch_size"].default)
    order = torch.Generator().manual_seed(seed)
    return [
        chosen
        for _ in range(settings["epochs"])
        for chosen in torch.randperm(count, generator=order).split(size)
    ]


def _query_gradients(model, queries):
    """∇f at the trained weights: (q, P)."""

    def gradient(batch):
        f = log_probability(logits(model, batch), batch).sum()
        return _flat(torch.autograd.grad(f, list(model.parameters())))

    return torch.stack([gradient(collate([query]).to(model.device)) for query in queries])


def _stage_back(model, sequences, steps, order, bar_theta, curvature, title):
    """(θ̄ before the stage, (q, n) df/dw of its sequences)."""
    bar = (bar_theta, torch.zeros_like(bar_theta), torch.zeros_like(bar_theta))
    found = bar_theta.new_zeros(len(bar_theta), len(sequences))
    backwards = list(zip(steps, order, strict=True))[::-1]
    for step, chosen in tqdm(backwards, desc=title, disable=title is None):
        vector_to_parameters(step.theta, model.parameters())
        batch = collate([sequences[i] for i in chosen]).to(model.device)
        bar, by_weight = _step_back(model, step, batch, bar, curvature)
        found[:, chosen] += by_weight
    return bar[0], found


def _step_back(model, step, batch, bar, curvature):
    """((θ̄, m̄, v̄) before the step, (q, n) df/dw of its batch by way of this step)."""
    bar_theta, bar_m, bar_v = bar
    (beta1, beta2), (by_m, by_v) = step.betas, _sensitivities(step)
    bar_m, bar_v = bar_m + by_m * bar_theta, bar_v + by_v * bar_theta
    with sdpa_kernel(SDPBackend.MATH):  # the attention that can be differentiated twice
        g, product = curvature(model, batch)
        bar_g = (1 - beta1) * bar_m + 2 * (1 - beta2) * g * bar_v
        H_bar_g, by_weight = (torch.stack(x) for x in zip(*map(product, bar_g)))
    bar_theta = (1 - step.rate * step.decay) * bar_theta + H_bar_g
    return (bar_theta, beta1 * bar_m, beta2 * bar_v), by_weight


def _sensitivities(step):
    """∂θ′/∂m′ and ∂θ′/∂v′, elementwise (P,). Where v′ is 0, g and m′ have been 0 all along: no
    effect of v′."""
    c1, c2 = (1 - beta**step.number for beta in step.betas)
    d = (step.v / c2).sqrt() + step.eps
    by_v = step.rate / c1 * step.m / d / d / (2 * (c2 * step.v).sqrt())
    return -step.rate / c1 / d, by_v.where(step.v > 0, 0)


def _hessian(model, batch):
    """g (P,), and the function u (P,) -> (∇²L u (P,), ⟨∇ℓ_z, u⟩/size (n,))."""
    parameters, losses = list(model.parameters()), loss(logits(model, batch), batch)
    weights = torch.ones_like(losses, requires_grad=True)
    gradients = torch.autograd.grad((losses * weights).mean(), parameters, create_graph=True)

    def product(u):
        *parts, by_weight = torch.autograd.grad(
            gradients, [*parameters, weights], _split(u, parameters), retain_graph=True
        )
        return _flat(parts), by_weight

    return _flat(gradients).detach(), product


def _gauss_newton(model, batch):
    """g (P,), and the function u (P,) -> (E_z[JᵀH_out J] u (P,), ⟨∇ℓ_z, u⟩/size (n,))."""
    parameters = list(model.parameters())
    z, y = align(logits(model, batch), batch.labels)
    p, counts = z.detach().softmax(2), (y != NO_LOSS)[..., None] / len(z)
    slope = (p - one_hot(y.clamp(min=0), z.shape[2])) * counts  # ∂L/∂z
    dual = torch.zeros_like(z, requires_grad=True)
    linear = torch.autograd.grad(z, parameters, dual, create_graph=True)  # Jᵀ·dual

    def product(u):
        (Ju,) = torch.autograd.grad(linear, dual, _split(u, parameters), retain_graph=True)
        H_Ju = p * (Ju - (p * Ju).sum(2, keepdim=True)) * counts
        Gu = _flat(torch.autograd.grad(z, parameters, H_Ju, retain_graph=True))
        return Gu, (slope * Ju).sum((1, 2))

    return _flat(torch.autograd.grad(z, parameters, slope, retain_graph=True)), product


CURVATURES = {"hessian": _hessian, "gauss_newton": _gauss_newton}


def _flat(tensors):
    return torch.cat([x.flatten() for x in tensors])


def _split(u, parameters):
    """The inverse of `_flat`."""
    return [x.view_as(p) for x, p in zip(u.split([p.numel() for p in parameters]), parameters)]
