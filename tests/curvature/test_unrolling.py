"""An unrolled stage is gradient descent of a given length on the stage's quadratic."""

import pytest
import torch
from support import tiny

from msif.core.influence import Damping, Stage, check, precondition
from msif.core.layers import tracked
from msif.curvature import adam
from msif.curvature.dense import Dense
from msif.curvature.unrolling import Unrolled


def curvature(seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    return Dense(root @ root.mT / 6, {"layer": (2, 3)})


def vector(seed=1):
    return {
        "layer": torch.randn(
            4, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
    }


def descended(H, start, force, tau, steps):
    """Gradient descent on ½ δᵀHδ + forceᵀδ from `start`, at a rate of tau / steps."""
    for _ in range(steps):
        start = start - tau / steps * (start @ H + force)
    return start


def test_a_change_of_the_start_decays_as_in_gradient_descent():
    stage, v = Unrolled(curvature(), time=2.0, relative=False), vector()
    expected = descended(stage.curvature.matrix, v["layer"].flatten(1), 0.0, 2.0, 200_000)
    # Euler's error is O(τ/steps)
    assert torch.allclose(stage.transfer(v)["layer"].flatten(1), expected, atol=1e-4)


def test_a_documents_weight_acts_as_in_gradient_descent():
    stage, v = Unrolled(curvature(), time=2.0, relative=False), vector()
    expected = -descended(
        stage.curvature.matrix,
        torch.zeros(4, 6, dtype=torch.float64),
        v["layer"].flatten(1),
        2.0,
        200_000,
    )
    assert torch.allclose(stage.inverse(v)["layer"].flatten(1), expected, atol=1e-4)


def test_a_long_time_gives_the_inverse_and_forgets_the_start():
    H, v = curvature(), vector()
    long = Unrolled(H, time=1e5, relative=False)
    assert torch.allclose(long.inverse(v)["layer"], Stage(H).inverse(v)["layer"])
    assert long.transfer(v)["layer"].abs().max() < 1e-8


def test_flat_directions_move_by_the_time_alone():
    flat = Dense(torch.zeros(6, 6, dtype=torch.float64), {"layer": (2, 3)})
    v, stage = vector(), Unrolled(flat, time=3.0, relative=False)
    assert torch.allclose(stage.inverse(v)["layer"], 3 * v["layer"]) and torch.equal(
        stage.transfer(v)["layer"], v["layer"]
    )


def test_two_halves_in_a_row_are_the_whole():
    """SOURCE's segments: with equal curvature,
    documents of both segments together act as in one stage of both lengths."""
    H, v = curvature(), vector()
    half, whole = Unrolled(H, time=0.7, relative=False), Unrolled(H, time=1.4, relative=False)
    first, second = precondition(v, [half, half])
    assert torch.allclose(first["layer"] + second["layer"], whole.inverse(v)["layer"])


def test_relative_time_is_over_the_layers_mean_eigenvalue():
    H, v = curvature(), vector()
    absolute = Unrolled(H, time=2.0 / torch.linalg.eigvalsh(H.matrix).mean().item(), relative=False)
    assert torch.allclose(Unrolled(H, time=2.0).inverse(v)["layer"], absolute.inverse(v)["layer"])


def test_an_unrolled_last_stage_needs_no_alpha():
    check([Stage(curvature()), Unrolled(curvature())])


@pytest.mark.parametrize(
    "settings",
    [{"time": 0.0}, {"time": float("inf")}, {"alpha": Damping(0.1)}, {"damping": Damping(0.1)}],
)
def test_what_an_unrolled_stage_cannot_have_is_refused(settings):
    with pytest.raises(ValueError, match="time"):
        Unrolled(curvature(), **settings)


def test_adams_metric_inverts_the_curvature_plus_the_damped_metric():
    """apply(1/(Λ + d)) = (H + d P⁻¹)⁻¹, H being what the scaled bases and Λ say it is."""
    model, sequences = tiny.neox(), tiny.documents(4)
    tracked_model = tracked(model)
    factors = adam.fit(tracked_model, sequences, batch_size=2)
    for name, x in factors.factors.items():
        # columns: P^(1/2) × eigenvectors
        Q = torch.kron(x.basis_out[0].contiguous(), x.basis_in.contiguous())
        P = Q @ Q.mT  # diag(s²) by orthonormality
        assert torch.allclose(P, torch.diag(P.diagonal()), atol=1e-10)
        H = torch.linalg.inv(Q).mT @ torch.diag(x.eigenvalues.flatten()) @ torch.linalg.inv(Q)
        expected = torch.linalg.inv(H + 0.3 * torch.linalg.inv(P))
        v = torch.randn(2, *x.eigenvalues.shape[1:], dtype=torch.float64)
        found = x.apply(lambda values, mean: 1 / (values + 0.3), v).flatten(1)
        assert torch.allclose(found, v.flatten(1) @ expected, rtol=1e-6)


def test_adams_second_moment_is_that_of_the_steps_gradients():
    model, sequences = tiny.neox(), tiny.documents(4)
    tracked_model = tracked(model)
    found = adam.second_moments(tracked_model, sequences, batch_size=len(sequences))
    expected = tiny.weight_gradients(model, tracked_model.layers, sequences, tiny.pseudo(adam.loss))
    for layer in tracked_model.layers:
        assert torch.allclose(found[layer.name], expected[layer.name].mean(0).square())
