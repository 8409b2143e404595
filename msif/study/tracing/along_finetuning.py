"""Single-stage influence over checkpoints of fine-tuning, as others are over pre-training's.

    s(z) = Σ_k ⟨(H_k + d₂)⁻¹ ∇(−f)(θ_k), ∇ℓ_z(θ_k)⟩ / σ_k        query and candidate at θ_k

θ_k: after an epoch of fine-tuning, H_k its EK-FAC on fine-tuning's rows, σ_k the standard
deviation of its scores (`trajectory`). A test-bed keeps the last epoch alone; so its fine-tuning
runs once more. d₂ is that of one checkpoint, not tuned for the sum.
"""

from copy import deepcopy

from msif.core.influence import Damping, Stage, query_gradients
from msif.core.layers import Tracked
from msif.study import scratch
from msif.study.beds.fitted import fitted
from msif.study.beds.training import train
from msif.study.tracing.methods import FORMS, score_together, trajectory

# Of the way from θ₁ to θ₂: what rounding moves a training again by stays below, another rate or
# number of epochs does not (0.003 with other threads; 0.08 at a rate of 1.1 times).
AWAY = 0.02
METHOD = "single_stage_finetuned_trajectory"


def over_finetuning(case, seed, finetuning, epochs, *, damping, batch_size=64, samples=4):
    """{METHOD/form: (q, n)}, kept in scratch/.

    seed, finetuning: as the test-bed was fine-tuned with; epochs: after which there is a
    checkpoint; damping: relative to each layer's mean eigenvalue; samples: draws of each fit.
    Raises ValueError for an epoch that fine-tuning does not have, and where training as
    `finetuning` says does not end at θ₂."""
    last = finetuning["epochs"]
    if not epochs or not all(1 <= epoch <= last for epoch in epochs):
        raise ValueError(f"epochs {epochs}: expected some, each from 1 to {last}, the last")
    settings = {"damping": damping, "batch_size": batch_size, "samples": samples}
    key = {"finetuning": finetuning, "epochs": list(epochs), "seed": seed} | settings

    def compute():
        nets = _checkpoints(case, seed, finetuning, epochs)
        found = [_scores(case, net, f"{seed}/finetuned", **settings) for net in nets]
        both = zip(FORMS, ([s.values for s in found], [s.normalised() for s in found]))
        return {f"{METHOD}/{form}": trajectory(values) for form, values in both}

    return scratch.tensors("along-finetuning", case.key() | key, compute)


def _checkpoints(case, seed, finetuning, epochs):
    """The models after these epochs of fine-tuning; after the last, the test-bed's own."""
    start, end = case.bed.model("pretrained"), case.bed.model("finetuned")
    net, found = deepcopy(start), []

    def keep(epoch, net):
        if epoch in epochs:
            found.append(end if epoch == finetuning["epochs"] else deepcopy(net).eval())

    train(net, case.bed.finetuning, seed=seed, after_epoch=keep, title="again", **finetuning)
    away = _distance(net, end) / _distance(start, end)
    if away > AWAY:
        raise ValueError(
            f"{case.bed.folder}: fine-tuned again as {finetuning} with seed {seed}, it ends "
            f"{away:.2f} of the way from its fine-tuned model; expected its own settings, which "
            f"end within {AWAY}"
        )
    return found


def _distance(one, other):
    """‖θ − θ′‖ of all weights."""
    pairs = zip(one.parameters(), other.parameters())
    return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5


def _scores(case, net, name, *, damping, batch_size, samples):
    """`Scores` with query, candidates and curvature at one checkpoint."""
    tracked, rows = Tracked(net, case.layers), case.bed.finetuning
    settings = {"labels": "gaussian", "samples": samples, "seed": name, "batch_size": batch_size}
    factors, _ = fitted(tracked, rows, **settings)
    w = Stage(factors, Damping(damping)).inverse(query_gradients(tracked, case.queries))
    documents = case.bed.documents
    return score_together(tracked, documents, {"own": w}, batch_size, "along fine-tuning")["own"]
