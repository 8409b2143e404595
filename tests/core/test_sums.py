"""Sums that do not depend on the order of batches, in the memory of half a matrix."""

import itertools

import pytest
import torch
from support.families import llama
from support.tiny import documents

from msif.core import ekfac, sums
from msif.core.capture import backpropagate, frozen
from msif.core.data import buckets, collate
from msif.core.layers import tracked
from msif.core.objectives import fisher_losses
from msif.core.products import aligned


@pytest.mark.parametrize("d", [1, 127, 128, 129, 400])
def test_what_is_packed_is_the_upper_triangle(d):
    x = torch.randn(2, d, d, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(2, sums.packed(d), dtype=torch.float64)
    sums.add_packed(total, x)
    sums.add_packed(total, 2 * x)
    found = sums.upper(total, d, torch.float32)
    assert found.dtype == torch.float32 and torch.equal(
        found.triu(), (3 * x.double()).float().triu()
    )


def test_packed_numbers_of_wide_layers_take_hardly_more_than_half():
    assert sums.packed(10240) < 0.51 * 10240**2


def added(net, batches):
    """The covariance sums of these batches, from float32 gradients."""
    found = {}
    for layer in net.layers:
        found |= sums.covariance_zeros(net.model, layer)
    for batch in batches:
        backpropagate(
            net,
            batch,
            fisher_losses("gaussian", 2, 0),
            lambda *seen: sums.add_covariances(found, *seen, batch),
        )
    return found


def test_covariances_are_those_in_memory_and_the_same_bits_in_every_order_of_batches():
    torch.manual_seed(0)
    net, data = tracked(llama(), per_head=True), documents(9)
    batches = [collate([data[n] for n in group]) for group in buckets(data, 3)]
    with frozen(net.model):
        found = [
            ekfac.mean_covariances(
                sums.unpacked(added(net, order), net.layers, torch.float32), net.layers, 9, 2
            )
            for order in itertools.permutations(batches)
        ]
    expected = ekfac.covariances(net, data, fisher_losses("gaussian", 2, 0), 3)
    for name, (rows, A, B, positions) in expected.items():
        for _, A_too, B_too, positions_too in (x[name] for x in found):
            assert torch.equal(A_too, found[0][name][1]) and torch.equal(B_too, found[0][name][2])
            assert torch.equal(A_too, A) and torch.equal(B_too, B)
            assert positions_too == positions


def test_a_layer_that_no_gradient_reached_is_named():
    net = tracked(llama())
    found = added(net, [])
    with pytest.raises(ValueError, match="no gradient reaches .*q_proj"):
        ekfac.mean_covariances(
            sums.unpacked(found, net.layers, torch.float32), net.layers[:1], 1, 1
        )


def test_eigenvalue_sums_are_laid_out_as_they_are_added():
    net, data = tracked(llama(), per_head=True), documents(3)
    objectives, batch = fisher_losses("true", 1, 0), collate(data)
    bases = {
        n: ekfac.eigenbases(*x) for n, x in ekfac.covariances(net, data, objectives, 3).items()
    }
    rotations = {n: (aligned(x.basis_in), x.basis_out) for n, x in bases.items()}
    zeros, grown = {}, {}
    for layer in net.layers:
        zeros |= sums.eigenvalue_zeros(net.model, layer)
    with frozen(net.model):
        backpropagate(
            net, batch, objectives, lambda *x: ekfac.add_eigenvalues(grown, rotations, *x, batch)
        )
    assert {n: (x.shape, x.dtype) for n, x in grown.items()} == {
        n: (x.shape, x.dtype) for n, x in zeros.items()
    }
