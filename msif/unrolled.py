"""Exact differentiation through both trainings: how f changes with the weight of a document that every step used.

A step of either stage is AdamW on L = (1/size) Σ_z w_z ℓ_z, with g = ∇L and rate η, in the order of torch.optim.AdamW:

    m′ = β₁m + (1−β₁)g,   v′ = β₂v + (1−β₂)g²,   d = √v′/√c₂ + ε,   θ′ = (1 − ηλ)θ − (η/c₁) m′/d,   c = 1 − β^step

Going back from f(θ₂), with x̄ = df/dx, every step turns (θ̄′, m̄′, v̄′) into (θ̄, m̄, v̄) and adds to the score of its documents:

    m̄ₜ = m̄′ − (η/c₁) θ̄′/d,   v̄ₜ = v̄′ + (η/c₁) θ̄′ m′/(2 d² √v′ √c₂),   ḡ = (1−β₁)m̄ₜ + 2(1−β₂) g v̄ₜ,
    θ̄ = (1 − ηλ)θ̄′ + ∇²L ḡ,   m̄ = β₁m̄ₜ,   v̄ = β₂v̄ₜ,   df/dw_z += ⟨∇ℓ_z, ḡ⟩ / size

Each stage has an optimiser of its own, so that only θ̄ passes from fine-tuning to pre-training. Sign: positive = proponent.
Unit: nats per unit of weight, where every document weighs 1 in `training.train`: −Σ of the scores of left-out documents
estimates f without them − f with them. That is 1/N of a score of `influence`, whose documents weigh 1/N each.
Source: Ilyas & Engstrom 2025, "MAGIC: Near-Optimal Data Attribution for Deep Learning" (arXiv 2504.16430).
"""
from dataclasses import dataclass
from inspect import signature

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from tqdm import tqdm

from msif import scratch, testbed
from msif.data import collate
from msif.models import logits
from msif.objectives import log_probability, loss
from msif.resources import require
from msif.training import train


@dataclass(frozen=True)
class Step:
    """One step of AdamW: θ before it, m′ and v′ after it, all (P,); its number from 1; its parameter group's settings."""
    theta: torch.Tensor
    m: torch.Tensor
    v: torch.Tensor
    number: int
    rate: float
    betas: tuple
    eps: float
    decay: float


def scores(recipe, seed, queries, at_once=8):
    """df/dw_z of every pre-training document, (q, N) float32, positive = proponent, in nats per unit of weight (each weighs 1).

    recipe: `retraining.Recipe`; f: log-probability of the answer at θ₂ of `retraining.retrained(recipe, nothing, seed)`.
    queries: numbers of the corpus's queries. Kept in scratch/, `at_once` queries at a time, each of which costs about three forward and
    backward passes a step. Raises ValueError for a query that is not there, MemoryError before training if its steps do not fit.
    """
    known = len(recipe.corpus.queries)
    if bad := [query for query in queries if not 0 <= query < known]:
        raise ValueError(f"query {bad[0]}: expected numbers from 0 to {known - 1}, the corpus's queries")
    torch.set_num_threads(1)                          # equal numbers on any machine, as in retraining
    return torch.cat([_kept(recipe, seed, list(queries[i:i + at_once])) for i in range(0, len(queries), at_once)])


def _kept(recipe, seed, queries):
    def make(folder):
        tokenizer, net = testbed.start(recipe.corpus, recipe.model, seed)
        documents, rows, asked = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
        stages = [(documents, recipe.pretraining), (rows, recipe.finetuning)]
        found = differentiated(net, stages, [asked[i] for i in queries], seed, title="through training")[0]
        save_file({"scores": found}, folder / "scores.safetensors")

    key = recipe.key() | {"seed": seed, "queries": queries}
    return load_file(scratch.built("unrolled", key, make) / "scores.safetensors")["scores"]


def differentiated(model, stages, queries, seed=0, title=None):
    """Train the model in place through all stages, to θ₂, and go back: [(q, N) of stage 1, (q, M) of stage 2, …].

    stages: pairs (sequences, the settings of `training.train`). queries: sequences whose f = Σ log p(answer) is differentiated.
    Sign and unit as for `scores`. In the precision of the model. title: of the progress bars (None: silent).
    """
    _require(model, stages)
    records = [recorded(model, data, seed, settings) for data, settings in stages]
    trained = parameters_to_vector(model.parameters()).detach()
    bar_theta, found = _query_gradients(model, queries), []
    for (data, settings), steps in reversed(list(zip(stages, records, strict=True))):
        bar_theta, values = _stage_back(model, data, steps, _order(len(data), seed, settings), bar_theta, title)
        found.insert(0, values)
    vector_to_parameters(trained, model.parameters())
    return found


def recorded(model, sequences, seed, settings):
    """Train in place by `training.train`, and return each `Step` that its optimiser made."""
    steps, before = [], []

    def keep(optimiser, *_):
        group, = optimiser.param_groups
        states = [optimiser.state[p] for p in group["params"]]
        m, v = (torch.cat([s[name].flatten() for s in states]) for name in ("exp_avg", "exp_avg_sq"))
        steps.append(Step(before.pop(), m, v, len(steps) + 1, group["lr"], group["betas"], group["eps"], group["weight_decay"]))

    hooks = [register_optimizer_step_pre_hook(lambda *_: before.append(parameters_to_vector(model.parameters()).detach())),
             register_optimizer_step_post_hook(keep)]
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
    return [chosen for _ in range(settings["epochs"]) for chosen in torch.randperm(count, generator=order).split(size)]


def _require(model, stages):
    steps = sum(len(_order(len(data), 0, settings)) for data, settings in stages)
    size = sum(p.nbytes for p in model.parameters())
    require(memory=3 * steps * size, what=f"keeping {steps} steps of AdamW, three times the model each")


def _query_gradients(model, queries):
    """∇f at the trained weights: (q, P)."""
    batches = [collate([query]) for query in queries]
    return torch.stack([_flat(torch.autograd.grad(log_probability(logits(model, batch), batch).sum(), list(model.parameters())))
                        for batch in batches])


def _stage_back(model, sequences, steps, order, bar_theta, title):
    """(θ̄ before the stage, (q, n) df/dw of its sequences)."""
    bar, found = (bar_theta, *torch.zeros(2, *bar_theta.shape).to(bar_theta)), bar_theta.new_zeros(len(bar_theta), len(sequences))
    for step, chosen in tqdm(list(zip(steps, order, strict=True))[::-1], desc=title, disable=title is None):
        vector_to_parameters(step.theta, model.parameters())
        bar, found[:, chosen] = _step_back(model, step, [sequences[i] for i in chosen], bar, found[:, chosen])
    return bar[0], found


def _step_back(model, step, sequences, bar, found):
    """((θ̄, m̄, v̄) before the step, `found` (q, n) with this step's df/dw added)."""
    bar_theta, bar_m, bar_v = bar
    (beta1, beta2), shrunk = step.betas, 1 - step.rate * step.decay
    by_m, by_v = _sensitivities(step)
    bar_m, bar_v = bar_m + by_m * bar_theta, bar_v + by_v * bar_theta
    g, weights, gradient = _batch_gradient(model, sequences)
    bar_g = (1 - beta1) * bar_m + 2 * (1 - beta2) * gradient * bar_v
    products, by_weight = _products(model, g, weights, bar_g)
    return (shrunk * bar_theta + products, beta1 * bar_m, beta2 * bar_v), found + by_weight


def _sensitivities(step):
    """∂θ′/∂m′ and ∂θ′/∂v′, elementwise (P,). Where v′ is 0, g and m′ have been 0 all along: no effect of v′."""
    scale = step.rate / (1 - step.betas[0] ** step.number)
    root, c2 = step.v.sqrt(), (1 - step.betas[1] ** step.number) ** 0.5
    d = root / c2 + step.eps
    return -scale / d, torch.where(root > 0, scale * step.m / d / d / (2 * root * c2), 0)


def _batch_gradient(model, sequences):
    """g of (1/size) Σ w_z ℓ_z, as tensors to be differentiated again; the weights w = 1 (n,); g as one vector (P,)."""
    batch = collate(sequences).to(model.device)
    weights = torch.ones(len(sequences), dtype=next(model.parameters()).dtype, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):                # the attention that can be differentiated twice
        mean = (loss(logits(model, batch), batch) * weights).sum() / len(sequences)
        g = torch.autograd.grad(mean, list(model.parameters()), create_graph=True)
    return g, weights, _flat(g).detach()


def _products(model, g, weights, vectors):
    """(∇²L u, ⟨∇ℓ_z, u⟩/size) for each of the vectors u (q, P): (q, P) and (q, n)."""
    parameters = list(model.parameters())
    sizes, found = [p.numel() for p in parameters], []
    for u in vectors:
        parts = [x.view_as(p) for x, p in zip(u.split(sizes), parameters)]
        found.append(torch.autograd.grad(g, [*parameters, weights], parts, retain_graph=True))
    return torch.stack([_flat(parts[:-1]) for parts in found]), torch.stack([parts[-1] for parts in found])


def _flat(tensors):
    return torch.cat([x.flatten() for x in tensors])
