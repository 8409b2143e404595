"""TrackStar against its formula with dense gradients, and its projections."""

import pytest
import torch
from support.tiny import documents, llama, neox, plain_loss, relative, weight_gradients

from msif.core.layers import Tracked, tracked
from msif.rivals import trackstar

MODEL = neox()
TRACKED = tracked(MODEL, "layers.1.mlp|layers.1.attention.dense")
LAYERS = TRACKED.layers
DOCUMENTS, ROWS, QUERIES = documents(9), documents(5, seed=3), documents(3, seed=2)
WIDE = 1000  # no side is longer: nothing is projected


def dense(sequences):
    return {
        name: x.flatten(1)
        for name, x in weight_gradients(MODEL, LAYERS, sequences, plain_loss).items()
    }


def power(M, p):
    values, Q = torch.linalg.eigh(M)
    return Q @ torch.diag(values**p) @ Q.mT


def formula(asked, found, rows, mix, damping):
    """The definition, block by block."""
    parts = [[], []]
    for name in found:
        task = rows[name].mT @ rows[name] / len(rows[name])
        corpus = found[name].mT @ found[name] / len(found[name])
        R = mix * task + (1 - mix) * corpus
        d = damping * R.trace() / len(R)
        R = power(R + d * torch.eye(len(R)), -0.5)
        for part, x in zip(parts, (asked, found)):
            part.append(x[name] @ R)
    a, b = (torch.cat(part, 1) for part in parts)
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)


def test_without_projection_it_is_the_formula_on_dense_gradients():
    expected = formula(dense(QUERIES), dense(DOCUMENTS), dense(ROWS), 0.7, 1e-2)
    found = trackstar.scores(
        TRACKED,
        QUERIES,
        DOCUMENTS,
        ROWS,
        dimension=WIDE,
        mix=0.7,
        damping=1e-2,
        batch_size=4,
    )
    assert found.shape == (3, 9) and relative(found, expected) < 1e-8


def test_queries_and_rows_may_stand_at_another_model_than_the_documents():
    other = tracked(neox(seed=5), "layers.1.mlp|layers.1.attention.dense")
    asked, rows = (
        {
            name: x.flatten(1)
            for name, x in weight_gradients(other.model, LAYERS, few, plain_loss).items()
        }
        for few in (QUERIES, ROWS)
    )
    expected = formula(asked, dense(DOCUMENTS), rows, 0.3, 1e-1)
    settings = {"dimension": WIDE, "mix": 0.3, "damping": 1e-1}
    found = trackstar.scores(TRACKED, QUERIES, DOCUMENTS, ROWS, asking=other, **settings)
    assert relative(found, expected) < 1e-8


def test_much_damping_is_the_cosine_of_gradients():
    """R + d → a multiple of the identity in every block,
    so of equal blocks where there is one layer."""
    one = LAYERS[:1]
    found = trackstar.scores(
        Tracked(MODEL, one), QUERIES, DOCUMENTS, ROWS, dimension=WIDE, mix=0.5, damping=1e9
    )
    a, b = (dense(x)[one[0].name] for x in (QUERIES, DOCUMENTS))
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    assert relative(found, expected) < 1e-6  # 1 / damping


@pytest.mark.parametrize("make", [neox, llama])
def test_features_are_the_two_sided_projection_of_dense_gradients(make):
    """With and without a bias, of padded batches."""
    model = make()
    tracked_model = tracked(model, "layers.0.mlp")
    sides = trackstar.projections(tracked_model.layers, 3, 0, next(model.parameters()))
    found = trackstar.features(tracked_model, DOCUMENTS, sides, 4)
    D = weight_gradients(model, tracked_model.layers, DOCUMENTS, plain_loss)
    for name, (P_out, P_in) in sides.items():
        assert (
            found[name].shape == (9, 9)
            and relative(found[name], (P_out.mT @ D[name] @ P_in).flatten(1)) < 1e-10
        )


def test_projected_inner_products_are_unbiased():
    """E over projections of ⟨P_outᵀ D P_in, P_outᵀ E P_in⟩ = ⟨D, E⟩."""
    layer = LAYERS[0]
    x = dense(DOCUMENTS)[layer.name].unflatten(1, (layer.out_features, -1))
    exact, products = x.flatten(1) @ x.flatten(1).mT, []
    for seed in range(400):
        P_out, P_in = trackstar.projections([layer], 4, seed, x)[layer.name]
        y = (P_out.mT @ x @ P_in).flatten(1)
        products.append(y @ y.mT)
    mean, error = torch.stack(products).mean(0), torch.stack(products).std(0) / 20
    assert ((mean - exact).abs() < 4 * error).all() and relative(mean, exact) < 0.15


def test_projections_depend_on_seed_and_layer_alone():
    P = trackstar.projections(LAYERS, 3, 0, torch.zeros(1))
    again = trackstar.projections(LAYERS[::-1], 3, 0, torch.zeros(1))
    other = trackstar.projections(LAYERS, 3, 1, torch.zeros(1))
    a, b = (x.name for x in LAYERS[:2])
    assert all(torch.equal(*pair) for name in P for pair in zip(P[name], again[name]))
    assert P[a][0].dtype == torch.float32
    assert not torch.equal(P[a][0], other[a][0]) and not torch.equal(P[a][0][:8], P[b][0][:8])


def test_scores_do_not_depend_on_batches():
    whole, single = (
        trackstar.scores(TRACKED, QUERIES, DOCUMENTS, ROWS, dimension=3, batch_size=n)
        for n in (64, 1)
    )
    assert relative(single, whole) < 1e-8


def test_the_score_of_a_document_with_itself_is_one():
    found = trackstar.scores(TRACKED, DOCUMENTS[:2], DOCUMENTS, ROWS, dimension=4)
    assert torch.allclose(found[range(2), range(2)], torch.ones(2, dtype=torch.float64))
    assert found.abs().max() <= 1 + 1e-12


def test_moments_divide_gradients_by_the_root_of_their_factored_mean_square():
    moments = trackstar.second_moments(TRACKED, DOCUMENTS, batch_size=4)
    expected = []
    for x in (QUERIES, DOCUMENTS, ROWS):
        D = weight_gradients(MODEL, LAYERS, x, plain_loss)
        expected.append(
            {name: (d / torch.outer(*moments[name]).sqrt()).flatten(1) for name, d in D.items()}
        )
    found = trackstar.scores(
        TRACKED,
        QUERIES,
        DOCUMENTS,
        ROWS,
        dimension=WIDE,
        mix=0.7,
        damping=1e-2,
        moments=moments,
    )
    assert relative(found, formula(*expected, 0.7, 1e-2)) < 1e-8


def test_factored_moments_have_the_row_and_column_means_of_the_mean_square():
    for name, (r, c) in trackstar.second_moments(TRACKED, DOCUMENTS).items():
        V = dense(DOCUMENTS)[name].square().mean(0).view(len(r), len(c))
        factored = torch.outer(r, c)
        assert relative(factored.mean(1), V.mean(1)) < 1e-10
        assert relative(factored.mean(0), V.mean(0)) < 1e-10


def test_the_mix_makes_both_spectra_meet_at_its_place():
    g = torch.Generator().manual_seed(0)

    def spread():
        x = torch.randn(20, 20, generator=g, dtype=torch.float64)
        return x @ x.mT

    task, corpus = ({name: spread() * scale for name in "ab"} for scale in (1, 9))
    mix = trackstar.mixing(task, corpus, 0.25)
    a, b = (
        sorted(torch.cat([torch.linalg.eigvalsh(x) for x in m.values()]).tolist())[-10]
        for m in (task, corpus)
    )
    assert mix * a == pytest.approx((1 - mix) * b, rel=1e-10) and mix > 0.8
    assert trackstar.mixing(task, task) == 0.5


def test_the_mix_is_chosen_when_none_is_given():
    sides = trackstar.projections(LAYERS, 4, 0, next(MODEL.parameters()))
    features = [trackstar.features(TRACKED, x, sides) for x in (ROWS, DOCUMENTS)]
    mix = trackstar.mixing(*({name: x.mT @ x / len(x) for name, x in f.items()} for f in features))
    given, chosen = (
        trackstar.scores(TRACKED, QUERIES, DOCUMENTS, ROWS, dimension=4, mix=m) for m in (mix, None)
    )
    assert relative(chosen, given) < 1e-10 and 0 < mix < 1


@pytest.mark.parametrize(
    "wrong", [{"dimension": 0}, {"mix": 1.5}, {"damping": -1.0}, {"damping": float("nan")}]
)
def test_wrong_settings_are_refused_before_any_pass(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        trackstar.scores(Tracked(None, LAYERS), QUERIES, DOCUMENTS, ROWS, **wrong)
