"""Bayesian influence: the covariance is the formula's, near an optimum it is damped influence, and
the sampler's stationary law is the posterior's."""

import copy

import numpy as np
import pytest
import torch
from support.tiny import documents, plain_loss, relative
from support.two_layers import MODEL

from msif.rivals import bayesian


def test_scores_are_minus_the_covariance_over_draws():
    g = torch.Generator().manual_seed(0)
    losses, f = torch.randn(7, 5, generator=g), torch.randn(7, 2, generator=g)
    raw, normalised = bayesian.covariances(losses, f)
    whole = np.cov(np.concatenate([f, losses], 1).T.astype(np.float64))
    np.testing.assert_allclose(raw, -whole[:2, 2:], rtol=1e-5)
    np.testing.assert_allclose(normalised, -whole[:2, 2:] / np.diag(whole)[2:] ** 0.5, rtol=1e-5)


def test_of_gaussian_draws_it_is_influence_with_damping_localisation_over_inverse_temperature():
    """w ~ N(θ, (nβH + γ)⁻¹) and linear ℓ_z, f: nβ × score = −gᵀ (H + γ/nβ)⁻¹ ∇ℓ_z, up to √(2/m)."""
    g = torch.Generator().manual_seed(1)
    n, m, nb, gamma = 4, 200_000, 50.0, 5.0
    root = torch.randn(n, n, generator=g, dtype=torch.float64)
    H = root @ root.mT
    precision = nb * H + gamma * torch.eye(n, dtype=torch.float64)
    w = torch.linalg.solve_triangular(
        torch.linalg.cholesky(precision).mT,
        torch.randn(n, m, generator=g, dtype=torch.float64),
        upper=True,
    ).mT
    document, query = torch.randn(2, n, 3, generator=g, dtype=torch.float64)
    raw, _ = bayesian.covariances(w @ document, w @ query)
    damped = H + gamma / nb * torch.eye(n, dtype=torch.float64)
    assert relative(nb * raw.double(), -query.mT @ damped.inverse() @ document) < 0.02


def test_a_constant_loss_has_no_influence_and_one_draw_is_refused():
    raw, normalised = bayesian.covariances(torch.ones(3, 2), torch.randn(3, 1))
    assert not raw.any() and not normalised.any()
    for losses, f in ((torch.ones(1, 2), torch.ones(1, 1)), (torch.ones(3, 2), torch.ones(2, 1))):
        with pytest.raises(ValueError, match="as many, two at least"):
            bayesian.covariances(losses, f)


def test_without_data_the_draws_have_the_localisations_variance():
    """nβ = 0: w − θ is an autoregression with variance 1 / (γ (1 − εγ/4))."""
    step, gamma = 0.02, 25.0
    settings = {"step": step, "inverse_temperature": 0.0, "localisation": gamma}
    start = torch.nn.utils.parameters_to_vector(MODEL.parameters()).detach().clone()
    found = [
        torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
        for model in bayesian.draws(MODEL, documents(3), 3, between=20, batch_size=2, **settings)
    ]
    expected = 1 / (gamma * (1 - step * gamma / 4))
    for moved in found:  # thousands of weights each: a standard error of √(2 / weights)
        assert abs(moved.var().item() / expected - 1) < 6 * (2 / len(moved)) ** 0.5
        assert abs(moved.mean().item()) < 6 * (expected / len(moved)) ** 0.5
    after = torch.nn.utils.parameters_to_vector(MODEL.parameters())
    assert after.equal(start), "the model itself stays as it is"


def test_one_step_follows_the_gradient_of_the_mean_loss():
    sequences, step, nb = documents(1), 1e-3, 40.0
    settings = {"inverse_temperature": nb, "localisation": 0.0, "between": 1, "batch_size": 3}

    def moved(inverse_temperature):
        with_ = settings | {"inverse_temperature": inverse_temperature}
        model = next(bayesian.draws(MODEL, sequences, 1, step=step, **with_))
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    net = copy.deepcopy(MODEL)
    g = torch.autograd.grad(plain_loss(net, sequences[0]), list(net.parameters()))
    drift = moved(nb) - moved(0.0)  # the same noise
    expected = -step / 2 * nb * torch.cat([x.flatten() for x in g])
    assert relative(drift, expected) < 1e-6


def test_steps_that_are_too_large_are_refused():
    settings = {"step": 1e9, "inverse_temperature": 1e9, "localisation": 0.0}
    with pytest.raises(FloatingPointError, match="lower the step 1e"):
        list(bayesian.draws(MODEL, documents(3), 9, between=3, batch_size=2, **settings))
