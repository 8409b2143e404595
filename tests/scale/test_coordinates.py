"""More coordinates, less error; and those that are kept carry most of the expected score."""

import pytest
import torch
from support.indexed import indexed

from msif.core.influence import Damping
from msif.scale import coordinates

DAMPING, ALL = Damping(0.1), 10**9


@pytest.fixture(scope="module", params=[False, True], ids=["whole layers", "per head"])
def study(request):
    return indexed(DAMPING, per_head=request.param)


def test_documents_longer_than_a_layer_is_wide_are_rotated_after_their_product(study):
    chosen = coordinates.choose(study.factors, DAMPING, ALL)
    a, g = torch.randn(2, 40, 8).double(), torch.randn(2, 40, 24).double()
    layer = study.tracked.layers[0]
    assert (layer.in_features, layer.out_features, layer.bias) == (8, 24, True)
    after = chosen.factors[layer.name].rotated_gradient(a, g, True)
    before = sum(
        chosen.factors[layer.name].rotated_gradient(a[:, t : t + 5], g[:, t : t + 5], True)
        for t in range(0, 40, 5)
    )
    torch.testing.assert_close(after, before)


def test_more_coordinates_less_error(study):
    def error(size):
        chosen = coordinates.choose(study.factors, DAMPING, size)
        assert chosen.size == size
        return coordinates.error(chosen, study.tracked, study.candidates, study.w, dtype="float32")

    total = coordinates.choose(study.factors, DAMPING, ALL).size
    found = [error(total // part) for part in (64, 8, 2, 1)]
    rms = [x["relative_rms"] for x in found]
    assert (
        rms == sorted(rms, reverse=True)
        and rms[-1] < 1e-6
        and found[-1]["spearman"] == pytest.approx(1)
    )
    assert rms[2] < 0.2 < rms[0]


def test_typical_queries_choose_better_than_the_spectrum_alone(study):
    """The measured first factor of Λ E[w̃²], here of few queries of a special kind."""
    few = {name: x[:2] for name, x in study.w.items()}
    chosen = [coordinates.choose(study.factors, DAMPING, 60, typical) for typical in (None, few)]
    shares = {
        name: x.rotate(few[name]).square().mean(0).flatten() * x.eigenvalues.flatten()
        for name, x in study.factors.factors.items()
    }
    kept = torch.cat([shares[name][at] for name, at in chosen[1].places.items()])
    torch.testing.assert_close(
        kept.sort().values, torch.cat(list(shares.values())).topk(60).values.sort().values
    )
    errors = [coordinates.error(x, study.tracked, study.candidates, few) for x in chosen]
    plain, better = (x["relative_rms"] for x in errors)
    assert better < plain


def test_the_chosen_coordinates_carry_most_of_the_expected_squared_score(study):
    chosen, shares, kept = coordinates.choose(study.factors, DAMPING, 50), [], []
    for name, x in study.factors.factors.items():
        values = x.eigenvalues.flatten()
        share = (values / (values + 0.1 * values.mean())).square()
        shares.append(share)
        kept.append(share[chosen.places[name]])
        torch.testing.assert_close(
            chosen.spread[name], (values + 0.1 * values.mean()).sqrt()[chosen.places[name]]
        )
    torch.testing.assert_close(
        torch.cat(kept).sort().values, torch.cat(shares).topk(50).values.sort().values
    )
    with pytest.raises(ValueError, match="size is 0"):
        coordinates.choose(study.factors, DAMPING, 0)


def test_a_layer_without_curvature_and_damping_carries_nothing(study):
    first, *others = study.factors.factors
    flat = type(study.factors)(
        {
            name: type(x)(**{**vars(x), "eigenvalues": x.eigenvalues * (name != first)})
            for name, x in study.factors.factors.items()
        },
        {},
    )
    total = sum(x.eigenvalues.numel() for x in flat.factors.values())
    chosen = coordinates.choose(flat, Damping(0), total - flat.factors[first].eigenvalues.numel())
    assert len(chosen.places[first]) == 0
    every = coordinates.choose(flat, Damping(0), ALL)
    assert every.size == total and (every.spread[first] == 1).all()
