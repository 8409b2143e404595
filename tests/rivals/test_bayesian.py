"""Bayesian influence: the covariance is the formula's, near an optimum it is damped influence, and
what is drawn follows the posterior, in stiff directions too."""

import copy

import numpy as np
import pytest
import torch
from support.tiny import documents, plain_loss, relative
from support.two_layers import MODEL

from msif.rivals import bayesian

flat = torch.nn.utils.parameters_to_vector


def test_scores_are_minus_the_covariance_over_draws():
    g = torch.Generator().manual_seed(0)
    losses, f = torch.randn(7, 5, generator=g), torch.randn(7, 2, generator=g)
    raw, normalised = bayesian.covariances(losses, f, 3.0)
    whole = 3 * np.cov(np.concatenate([f, losses], 1).T.astype(np.float64))
    np.testing.assert_allclose(raw, -whole[:2, 2:], rtol=1e-5)
    spread = losses.double().std(0).numpy()
    np.testing.assert_allclose(normalised, -whole[:2, 2:] / spread, rtol=1e-5)


def test_of_gaussian_draws_it_is_influence_with_damping_localisation_over_inverse_temperature():
    """w ~ N(θ, (nβH + γ)⁻¹), linear ℓ_z and f: −gᵀ (H + γ/nβ)⁻¹ ∇ℓ_z, up to √(2/m)."""
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
    raw, _ = bayesian.covariances(w @ document, w @ query, nb)
    damped = H + gamma / nb * torch.eye(n, dtype=torch.float64)
    assert relative(raw.double(), -query.mT @ damped.inverse() @ document) < 0.02


def test_a_constant_loss_has_no_influence_and_what_is_no_covariance_is_refused():
    raw, normalised = bayesian.covariances(torch.ones(3, 2), torch.randn(3, 1))
    assert not raw.any() and not normalised.any()
    for losses, f in ((torch.ones(1, 2), torch.ones(1, 1)), (torch.ones(3, 2), torch.ones(2, 1))):
        with pytest.raises(ValueError, match="as many, two at least"):
            bayesian.covariances(losses, f)
    with pytest.raises(ValueError, match="not finite: lower the step"):
        bayesian.covariances(torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 1))


def test_without_data_the_draws_have_the_localisations_variance():
    """nβ = 0: w − θ is an autoregression with variance 1 / (γ (1 − εγ/4))."""
    step, gamma = 0.02, 25.0
    settings = {"step": step, "inverse_temperature": 0.0, "localisation": gamma, "batch_size": 2}
    start = flat(MODEL.parameters()).detach().clone()
    drawn = bayesian.draws(MODEL, documents(3), 3, burn_in=20, between=20, **settings)
    expected = 1 / (gamma * (1 - step * gamma / 4))
    for moved in [flat(model.parameters()).detach() - start for model in drawn]:
        # thousands of weights each: a standard error of √(2 / weights)
        assert abs(moved.var().item() / expected - 1) < 6 * (2 / len(moved)) ** 0.5
        assert abs(moved.mean().item()) < 6 * (expected / len(moved)) ** 0.5
    assert flat(MODEL.parameters()).equal(start), "the model itself stays as it is"


def test_the_draws_have_the_posteriors_variance_in_stiff_and_flat_directions(monkeypatch):
    """A quadratic loss, half of its directions stiff, whose documents' gradients differ by a
    hundred times the noise that is injected: variance 1 / (h (1 − εh/4)), h = nβλ + γ."""
    net, gamma, nb = torch.nn.Linear(2, 400, bias=False).double(), 100.0, 1e4
    curvature = torch.tensor([1e-4, 0.1], dtype=torch.float64)  # of each column
    at = net.weight.detach().clone()
    pulls = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    pulls -= pulls.mean(0)  # θ is the optimum

    def gradients(model, parameters, few):
        return [curvature * (parameters[0].detach() - at) + torch.stack(few).mean(0)]

    monkeypatch.setattr(bayesian, "_gradients", gradients)
    settings = {"step": 1e-3, "inverse_temperature": nb, "localisation": gamma, "batch_size": 2}
    drawn = bayesian.draws(net, list(pulls), 20, burn_in=200, between=100, **settings)
    found = torch.stack([model.weight.detach() - at for model in drawn]).var((0, 1))
    h = nb * curvature + gamma
    expected = 1 / (h * (1 - 1e-3 * h / 4))
    assert relative(found, expected) < 6 * (2 / (20 * 400)) ** 0.5  # that many numbers a column


def test_one_step_follows_the_gradient_of_the_mean_loss():
    """At θ the control variate leaves the gradient of all documents, whatever the batch."""
    sequences, step, nb = documents(4), 1e-3, 40.0
    settings = {"localisation": 0.0, "burn_in": 1, "between": 1, "batch_size": 3, "step": step}

    def moved(inverse_temperature):
        with_ = settings | {"inverse_temperature": inverse_temperature}
        return flat(next(bayesian.draws(MODEL, sequences, 1, **with_)).parameters()).detach()

    net = copy.deepcopy(MODEL)
    mean = sum(plain_loss(net, s) for s in sequences) / len(sequences)
    expected = -step / 2 * nb * flat(torch.autograd.grad(mean, list(net.parameters())))
    assert relative(moved(nb) - moved(0.0), expected) < 1e-6  # the same noise


def test_steps_that_are_too_large_are_refused():
    settings = {"step": 1e9, "inverse_temperature": 1e9, "localisation": 0.0, "batch_size": 2}
    with pytest.raises(FloatingPointError, match="lower the step"):
        list(bayesian.draws(MODEL, documents(3), 9, burn_in=3, between=3, **settings))
