"""Scores through a stage of adapters.

With dense second derivatives they are the oracle's (1e-9: pseudo-inverses of systems whose
conditions are up to 1e5) and what training all stages again measures (1e-5: finite differences);
with EK-FAC, they are explicit matrices (1e-8: conjugate gradients end at a residual of 1e-9).
"""

from dataclasses import replace

import pytest
import torch
from support.kinds import chain
from support.tiny import documents, llama, neox, relative
from torch.nn.functional import pad

from msif.core import capture, ekfac
from msif.core.adapters import Adapter
from msif.core.layers import Tracked, tracked_layers
from msif.core.objectives import loss
from msif.core.preferences import EigenCross
from msif.core.stages import Damping, Stage
from msif.curvature import tangent
from msif.curvature.lora import LoRA

DATA = documents(12)
CHAINS = [
    ("regression", "lora"),
    ("regression", "lora without decay"),
    ("mlp", "lora"),
    ("regression", "lora held"),
    ("mlp", "lora without decay"),
    ("mlp", "full", "lora"),
    ("mlp", "lora", "full"),
    ("transformer", "lora"),
]


@pytest.mark.parametrize("names", CHAINS, ids=", ".join)
def test_scores_with_dense_curvature_are_exact(names):
    found = chain(*names)
    for k, (scores, exact) in enumerate(zip(found.scores(), found.exact()), 1):
        assert relative(scores, exact) < 1e-9, k
        assert relative(scores[:, 0], found.measured(k, 0)) < 1e-5, k


def test_scores_do_not_depend_on_the_batch_size():
    found = chain("mlp", "lora")
    for one, many in zip(found.scores(1), found.scores(12)):
        assert relative(one, many) < 1e-9


def problem(make=neox, per_head=False, rank=2, **more):
    """A stage of random adapters on a few layers of a tiny model, with its EK-FAC factors, and
    vectors to be preconditioned."""
    model = make()
    layers = tracked_layers(model, per_head=per_head)
    tracked = Tracked(model, layers)
    g = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    adapters = {
        x.name: Adapter(random(rank, x.in_features), random(x.out_features, rank), 0.5)
        for x in layers[:2] + layers[-1:]
    }
    mean = capture.mean_gradient(tracked, DATA, loss)
    for name, x in adapters.items():  # at a minimum, with as small a rest as the curvature bears
        q_B, q_A = torch.linalg.qr(x.B)[0], torch.linalg.qr(x.A.mT)[0]
        q_A = pad(q_A, (0, 0, 0, mean[name].shape[1] - len(q_A)))
        D = mean[name] - q_B @ q_B.mT @ mean[name]
        mean[name] = (D - D @ q_A @ q_A.mT) / 50
    stage = LoRA(ekfac.fit(tracked, DATA), Damping(0.3), adapters=adapters, mean=mean, **more)
    return stage, {x.name: random(3, x.out_features, x.inputs) for x in layers}


def explicit(stage, name, alpha=0.0):
    """S and T of a layer as matrices over its flattened weights (o, i), by their definition."""
    x, D = stage.adapters[name], stage.mean[name]
    o, i, r = *D.shape, len(x.A)
    eye = torch.eye(o * i, dtype=torch.float64).view(-1, o, i)

    def G(shift):
        return stage.curvature.apply(lambda v, mean: v + shift * mean, {name: eye})[name].flatten(1)

    n_A = x.A.numel()
    A = pad(x.A, (0, i - x.A.shape[1]))
    moves = []  # P, column by column
    for n in range(o * r):
        moves.append(x.scale * torch.eye(o * r, dtype=A.dtype)[n].view(o, r) @ A)
    for n in range(n_A):
        dA = torch.eye(n_A, dtype=A.dtype)[n].view(r, -1)
        moves.append(x.scale * x.B @ pad(dA, (0, i - dA.shape[1])))
    P = torch.stack([m.flatten() for m in moves], 1)
    R = torch.zeros(P.shape[1], P.shape[1], dtype=A.dtype)
    for n in range(o * r):
        for m in range(n_A):
            (row, k), (other, column) = divmod(n, r), divmod(m, x.A.shape[1])
            R[n, o * r + m] = R[o * r + m, n] = x.scale * D[row, column] * (k == other)
    curved = P.mT @ G(stage.damping.value) @ P
    K = curved + R + stage.decay * torch.eye(len(R), dtype=A.dtype)
    values, vectors = torch.linalg.eigh(K)
    values = values.clamp(min=0) + alpha * curved.trace() / (r * o + n_A)
    inverse = torch.where(values > 1e-10 * values.max(), 1 / values, 0)
    S = P @ (vectors * inverse) @ vectors.mT @ P.mT
    X = 0
    if stage.cross is not None:
        X = stage.cross.transposed({name: eye})[name].flatten(1).mT
    return S, torch.eye(o * i, dtype=A.dtype) - (G(0) - X).mT @ S


@pytest.mark.parametrize("exactly", [True, False], ids=["exactly", "conjugate gradients"])
@pytest.mark.parametrize("make, per_head", [(neox, False), (neox, True), (llama, False)])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_with_ekfac_it_is_explicit_matrices(make, per_head, decay, exactly, monkeypatch):
    monkeypatch.setattr(tangent, "DENSE", 10**6 if exactly else 0)
    stage, v = problem(make, per_head, decay=decay)
    inverse, transfer = stage.inverse(v), stage.transfer(v)
    for name, x in v.items():
        if name not in stage.adapters:
            assert not inverse[name].any() and torch.equal(transfer[name], x)
            continue
        S, T = explicit(stage, name)
        assert relative(inverse[name].flatten(1), x.flatten(1) @ S) < 1e-8
        assert relative(transfer[name].flatten(1), x.flatten(1) @ T.mT) < 1e-8


def test_a_cross_term_is_taken_with_the_curvature():
    stage, v = problem()
    factors = stage.curvature.factors
    cross = EigenCross(factors, {name: x.eigenvalues.sin() for name, x in factors.items()})
    changed = replace(stage, cross=cross)
    found = changed.transfer(v)
    for name in stage.adapters:
        _, T = explicit(changed, name)
        assert relative(found[name].flatten(1), v[name].flatten(1) @ T.mT) < 1e-8


@pytest.mark.parametrize("exactly", [True, False], ids=["exactly", "conjugate gradients"])
def test_the_gauge_does_not_matter(exactly, monkeypatch):
    """B → BM, A → M⁻¹A with a condition of M of about 100: digits of that size are lost."""
    monkeypatch.setattr(tangent, "DENSE", 10**6 if exactly else 0)
    stage, v = problem()
    M = torch.tensor([[3.0, 1.0], [0.2, 0.1]], dtype=torch.float64)
    other = {
        name: Adapter(torch.linalg.inv(M) @ x.A, x.B @ M, x.scale)
        for name, x in stage.adapters.items()
    }
    changed = replace(stage, adapters=other)
    for do in (LoRA.inverse, LoRA.transfer):
        found, expected = do(changed, v), do(stage, v)
        assert all(relative(found[name], expected[name]) < 1e-8 for name in stage.adapters)


def test_adapters_of_full_rank_are_the_ordinary_stage():
    """8 of 8 inputs or outputs, no bias, no decay: S = (G + d)⁻¹, so that d is the stage's α."""
    stage, v = problem(llama, rank=8)
    plain = Stage(stage.curvature, alpha=stage.damping)
    for do in ("inverse", "transfer"):
        found, expected = getattr(stage, do)(v), getattr(plain, do)(v)
        for name in stage.adapters:
            assert relative(found[name], expected[name]) < 1e-8


def test_scores_through_trained_adapters_of_full_rank_are_those_of_the_ordinary_stage():
    adapted, full = (chain("unbiased", kind, rank=2) for kind in ("lora without decay", "full"))
    for found, expected in zip(adapted.scores(), full.scores()):
        assert relative(found, expected) < 1e-8


def test_untrained_adapters_let_what_they_cannot_move_pass():
    """B = 0: P moves rows of A alone."""
    stage, v = problem()
    zero = {name: replace(x, B=torch.zeros_like(x.B)) for name, x in stage.adapters.items()}
    moved = replace(stage, adapters=zero, remainder=False).inverse(v)
    for name, x in zero.items():
        out = moved[name][..., : x.A.shape[1]] @ torch.linalg.pinv(x.A) @ x.A
        assert relative(out, moved[name][..., : x.A.shape[1]]) < 1e-9


@pytest.mark.parametrize("exactly", [True, False], ids=["exactly", "conjugate gradients"])
@pytest.mark.parametrize("small, damping, precision", [(3e-3, 1e-6, 1e-6), (1e-4, 1e-3, 1e-7)])
def test_directions_that_small_adapters_move_are_not_lost(
    small, damping, precision, exactly, monkeypatch
):
    """S = U(Uᵀ(G + d)U)⁻¹Uᵀ, U a basis of {dB A + B dA}; its condition is up to 1 / d, and as many
    digits are lost of the 1e-12 that the basis has."""
    monkeypatch.setattr(tangent, "DENSE", 10**6 if exactly else 0)
    stage, v = problem()
    adapters = {name: replace(x, B=small * x.B) for name, x in stage.adapters.items()}
    stage = replace(stage, adapters=adapters, damping=Damping(damping), remainder=False)
    found = stage.inverse(v)
    for name, x in adapters.items():
        o, i = stage.mean[name].shape
        A = pad(x.A, (0, i - x.A.shape[1]))
        q_B, q_A = torch.linalg.qr(x.B)[0], torch.linalg.qr(A.mT)[0]
        eye = torch.eye(o * i, dtype=torch.float64).view(-1, o, i)
        free = torch.eye(i, dtype=torch.float64)
        free[x.A.shape[1] :] = 0  # of the bias
        P = (eye @ q_A @ q_A.mT + q_B @ q_B.mT @ (eye - eye @ q_A @ q_A.mT) @ free).flatten(1)
        values, vectors = torch.linalg.eigh((P + P.mT) / 2)
        U = vectors[:, values > 0.5]
        G = stage.curvature.apply(lambda e, mean: e + damping * mean, {name: eye})[name].flatten(1)
        S = U @ torch.linalg.solve(U.mT @ G @ U, U.mT)
        assert relative(found[name].flatten(1), v[name].flatten(1) @ S) < precision


@pytest.mark.parametrize("exactly", [True, False], ids=["exactly", "conjugate gradients"])
def test_singular_curvature_without_alpha_is_refused_as_that_of_a_plain_stage(exactly, monkeypatch):
    monkeypatch.setattr(tangent, "DENSE", 10**6 if exactly else 0)
    stage, v = problem()
    few = ekfac.fit(Tracked(model := neox(), tracked_layers(model)), DATA[:1], samples=1)
    bare = replace(stage, curvature=few, damping=Damping(0.0), remainder=False)
    with pytest.raises(ValueError, match="adapters is singular.*an alpha > 0.*or a damping > 0"):
        bare.inverse(v)
    assert all(x.isfinite().all() for x in replace(bare, alpha=Damping(0.1)).inverse(v).values())


def test_adapters_that_are_at_no_minimum_need_alpha(monkeypatch):
    """Negative eigenvalues are refused without α, and count as 0 with it."""
    stage, v = problem()
    steep = replace(stage, mean={name: 1e3 * x for name, x in stage.mean.items()})
    held = replace(steep, alpha=Damping(0.1))
    with pytest.raises(ValueError, match=r"query_key_value: .*no minimum.*an alpha > 0"):
        steep.inverse(v)
    found = held.inverse(v)
    for name in stage.adapters:
        S, _ = explicit(steep, name, alpha=0.1)
        assert relative(found[name].flatten(1), v[name].flatten(1) @ S) < 1e-8
    monkeypatch.setattr(tangent, "DENSE", 0)
    with pytest.raises(ValueError, match=r"query_key_value: .*no minimum.*remainder=False"):
        held.inverse(v)
    straight = replace(held, remainder=False)
    found = straight.inverse(v)
    monkeypatch.undo()
    expected = straight.inverse(v)
    assert all(relative(found[name], expected[name]) < 1e-8 for name in stage.adapters)


def test_what_does_not_fit_together_is_refused():
    stage, _ = problem()
    name = next(iter(stage.adapters))
    with pytest.raises(ValueError, match="adapters of no layer; expected"):
        replace(stage, adapters={})
    with pytest.raises(ValueError, match=r"adapters of \['other'\]; expected"):
        replace(stage, adapters={"other": stage.adapters[name]})
    with pytest.raises(ValueError, match="mean gradient has the shape None; its adapter is of"):
        replace(stage, mean={})
    with pytest.raises(ValueError, match="the weight decay is -1"):
        replace(stage, decay=-1)
    with pytest.raises(ValueError, match="new layers"):
        replace(stage, new=("head",))
