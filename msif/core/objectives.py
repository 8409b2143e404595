"""The scalars at the top of the model.

They are training losses, measurements, and pseudo-losses whose gradients sample the curvature.

Every function here maps ``(logits, batch)`` to one scalar per sequence, shape (n,). Logits are
(n, S, V) for a language model, whose ``logits[:, t]`` predict ``labels[:, t + 1]``, or (n, C) for a
sequence classifier. This is the only place where that shift by one happens. Losses and
log-probabilities are in nats, summed (not averaged) over label positions.
"""

import hashlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.core import checks
from msif.core.data import NO_LOSS, Batch

# (logits, batch) -> (n,).
Objective = Callable[[Tensor, Batch], Tensor]


def align(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions beside what they predict.

    Logits (n, T, V) in at least float32, targets (n, T) with −100 = none. For a language model
    T = S: the labels are shifted, as the last logits predict nothing, and the logits are not
    copied. Labels go where the logits are: a model spread over devices reads on the first and
    predicts on the last.

    Raises ValueError for logits that do not belong to the labels (a class for a language model,
    token labels for a classifier), a head of one output, whose only class has probability 1, and a
    label that is none of the outputs.
    """
    if logits.dim() != labels.dim() + 1:
        kinds = {1: "a class each", 2: "labels of tokens"}
        raise ValueError(
            f"the model gives logits of shape {tuple(logits.shape)} for sequences with "
            f"{kinds[labels.dim()]}; expected classes for a classifier (n, C), labels of tokens "
            f"for a language model (n, S, V)"
        )
    outputs = logits.shape[-1]
    if labels.dim() == 1 and outputs == 1:
        raise ValueError(
            "the model's head has one output, as a reward model's: over one class cross-entropy, "
            "its gradients and all scores are 0. Gradients and scores take an objective of its own "
            "(a function of logits (n, 1) and batch that gives (n,)); EK-FAC cannot be fitted to it"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    if labels.dim() == 1:
        _check_classes(labels, outputs)
        return logits[:, None], labels[:, None]
    return logits, F.pad(labels[:, 1:], (0, 1), value=NO_LOSS)


def _check_classes(labels, outputs):
    wrong = (labels < 0) | (labels >= outputs)
    if not labels.is_meta and wrong.any():
        raise ValueError(
            f"a sequence has the class {labels[wrong][0].item()}; expected 0 to {outputs - 1}, as "
            f"the model's head has {outputs} outputs"
        )


def loss(logits: Tensor, batch: Batch) -> Tensor:
    """Training loss ℓ_z = −Σ_t log p(y_t | x_<t): (n,), nats."""
    z, y = align(logits, batch.labels)
    return _Nats.apply(z, y).sum(1)


def log_probability(logits: Tensor, batch: Batch) -> Tensor:
    """Measurement f = Σ_t log p(y_t | x_<t) over the labelled (answer) tokens: (n,).

    In nats, higher = more likely.
    """
    return -loss(logits, batch)


def logit_margin(logits: Tensor, batch: Batch) -> Tensor:
    """Measurement f = Σ_t (z_t[y_t] − max_{v ≠ y_t} z_t[v]) over the labelled tokens: (n,).

    In units of a logit, positive where every labelled token is the likeliest.
    """
    z, y = align(logits, batch.labels)
    target = y.clamp(min=0)[..., None]
    rival = z.scatter(2, target, -torch.inf).amax(2)
    return ((z.gather(2, target)[..., 0] - rival) * (y != NO_LOSS)).sum(1)


class _Nats(torch.autograd.Function):
    """−log p(y) of logits z (n, T, V) and targets y (n, T), 0 where there is none: (n, T).

    Cross-entropy, but with all that the others have, r = Σ_{v ≠ y} p_v, in place of 1 − p_y:
    −log p_y = log(1 + e^(log Σ_{v ≠ y} e^{z_v} − z_y)); its gradient is p_v, and −r at y. Where a
    model is sure, p_y rounds to 1, and 1 − p_y is rounding error alone from p_y ≈ 1 − 1e-7 on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z, y):
        target = y.clamp(min=0)[..., None]
        others = z.scatter(-1, target, -torch.inf).logsumexp(-1, keepdim=True)
        nats = torch.logaddexp(others - z.gather(-1, target), others.new_zeros(()))[..., 0]
        return nats.masked_fill(y == NO_LOSS, 0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        z, y = ctx.saved_tensors
        target, none = y.clamp(min=0)[..., None], (y == NO_LOSS)[..., None]
        p = z.softmax(-1)
        if torch.is_grad_enabled():  # differentiated once more: nothing in place
            p = p.scatter(-1, target, 0)
            p = p.scatter(-1, target, -p.sum(-1, keepdim=True))
            return (p * grad[..., None]).masked_fill(none, 0), None
        p.scatter_(-1, target, 0)
        p.scatter_(-1, target, -p.sum(-1, keepdim=True))
        return p.mul_(grad[..., None]).masked_fill_(none, 0), None


def generator(seed: int | str, index: int, draw: int) -> torch.Generator:
    """Random numbers keyed by (seed, sequence index, draw).

    Equal under any batching, partition, device or resume.
    """
    key = hashlib.sha256(f"{seed}/{index}/{draw}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def _noise(draw_fn, y, batch, seed, draw, shape=()):
    """(n, T, *shape) noise that is zero off the label positions.

    Each sequence draws for its own labels, in order.
    """
    noise = torch.zeros(*y.shape, *shape)
    for row, index in enumerate(batch.index.tolist()):
        at = (y[row] != NO_LOSS).cpu()
        noise[row, at] = draw_fn(int(at.sum()), *shape, generator=generator(seed, index, draw))
    return noise.to(y.device)


def sampled_loss(logits: Tensor, batch: Batch, *, seed: int | str, draw: int) -> Tensor:
    """Σ_t ⟨p − e_ŷ, z_t⟩ with each ŷ_t ~ p(· | x_<t) drawn from the very logits that score it.

    (n,), drawn by the inverse CDF. Its gradient p − e_ŷ (a constant here) is that of ℓ with the
    labels ŷ, which the first forward pass need not compute.
    """
    z, y = align(logits, batch.labels)
    p = z.detach().softmax(2)
    cdf = p.cumsum(2)
    u = _noise(torch.rand, y, batch, seed, draw).to(cdf.dtype)[..., None] * cdf[..., -1:]
    drawn = torch.searchsorted(cdf, u, right=True).clamp(max=z.shape[2] - 1)
    del cdf
    p.scatter_(2, drawn, 0)  # p_ŷ − 1 is what the others have, as in `loss`
    return _linear(z, p.scatter_(2, drawn, -p.sum(2, keepdim=True)), y)


def gaussian_loss(logits: Tensor, batch: Batch, *, seed: int | str, draw: int) -> Tensor:
    """Σ_t ⟨u_t, z_t⟩ with u = √p∘ε − p(√p·ε), ε ~ N(0, I): (n,).

    E[uuᵀ] = diag(p) − ppᵀ, at lower variance than labels.
    """
    z, y = align(logits, batch.labels)
    p = z.detach().softmax(2)
    noise = p.sqrt() * _noise(torch.randn, y, batch, seed, draw, (z.shape[2],)).to(p.dtype)
    return _linear(z, noise - p * noise.sum(2, keepdim=True), y)


def _linear(z, u, y):
    """Σ_t ⟨u_t, z_t⟩ over the label positions, u constant: (n,).

    An output that cannot be (z = −∞, so that p = u = 0) adds 0, as if the model had none such.
    """
    u = u.masked_fill_((y == NO_LOSS)[..., None], 0)
    if z.detach().amin() == -torch.inf:  # else logits are not copied
        z = z.masked_fill(z.isneginf() & (u == 0), 0)
    return torch.linalg.vecdot(u, z).sum(1)


def fisher_losses(labels: str, samples: int, seed: int | str) -> list[Objective]:
    """The pseudo-losses whose gradients g have E[ggᵀ] = the Gauss-Newton matrix.

    labels: "gaussian" (recommended), "sampled", or "true" (the data's own labels; one sample, no
    randomness; E[ggᵀ] is then the empirical Fisher). Raises ValueError for another one, for
    samples < 1, and for a seed that is neither a whole number nor a text.
    """
    seed = checks.seed(seed)
    if labels == "true":
        return [loss]
    kinds: dict[str, Callable[..., Tensor]]
    kinds = {"sampled": sampled_loss, "gaussian": gaussian_loss}
    if labels not in kinds:
        raise ValueError(f"labels={labels!r}: expected 'gaussian', 'sampled' or 'true'")
    draws = range(checks.whole("samples", samples))
    return [partial(kinds[labels], seed=seed, draw=draw) for draw in draws]
