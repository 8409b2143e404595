"""What is made of factors: K-FAC's eigenvalues, none at all. (What they do: `test_ekfac`.)"""

import torch
from support.tiny import documents, neox

from msif.core.ekfac import fit
from msif.core.layers import tracked

DOCUMENTS = documents(7)


def test_kfac_keeps_the_bases_and_multiplies_the_eigenvalues_of_the_covariances():
    model = neox()
    factors = fit(tracked(model, per_head=True), DOCUMENTS)
    length = sum(len(s.input_ids) for s in DOCUMENTS) / len(DOCUMENTS)
    for name, x in factors.kfac().factors.items():
        expected = torch.stack([length * torch.outer(b, x.in_values) for b in x.out_values])
        assert torch.allclose(x.eigenvalues, expected, rtol=1e-12)
        assert x.basis_in is factors.factors[name].basis_in


def test_identity_turns_the_solve_into_doing_nothing():
    model = neox()
    tracked_model = tracked(model, per_head=True)
    v = {
        x.name: torch.randn(2, x.out_features, x.in_features + 1, dtype=torch.float64)
        for x in tracked_model.layers
    }
    found = fit(tracked_model, DOCUMENTS).identity().apply(lambda values, mean: 1 / values, v)
    assert all(torch.allclose(found[name], v[name], atol=1e-12) for name in v)
