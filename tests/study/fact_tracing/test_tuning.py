"""Settings tried: as many for a rival as for ours, each the score that it names; the best."""

import pytest
import torch

from msif.core.capture import gradients
from msif.core.influence import trajectory
from msif.core.products import flatten
from msif.rivals import trackstar, trak
from msif.study import metrics
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.fact_tracing import tuning
from msif.study.tracing import methods, rivals
from msif.study.tracing.case import trained_case

GRIDS = {
    "multi_stage": {"damping": [1e-3, 1e-1], "alpha": [0.1]},
    "single_stage_pretrained": {"damping": [1e-2, 1e-1]},
    "trackstar_trajectory": {"dimension": [4], "damping": [0.1], "query_at": ["own", "finetuned"]},
    "trak": {"dimension": [4], "ridge": [0.1, 1.0]},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A study of its own, with one seed's models and factors."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "dvc.yaml").touch()
    people = generate(0, fine_tuned=2, held_out=2, objects=3, near=1, fillers=10)
    model, training = dict(width=8, layers=1, heads=2), dict(epochs=3, rate=1e-2, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained_case(Recipe(people, model, training, training, 32), 0, [2], samples=(1, 1))


def test_what_is_tried_is_the_mrr_of_each_setting_and_is_tried_once(case, monkeypatch):
    found = tuning.tried(case, GRIDS)
    assert {method: len(x) for method, x in found.items()} == dict.fromkeys(GRIDS, 2)
    alone = methods.all_methods(case, damping=1e-1, alpha=0.1, single_stage_damping=0.1)
    for method, at in (("multi_stage", 1), ("single_stage_pretrained", 1)):
        for form, values in zip(("raw", "normalised"), alone[method]):
            expected = metrics.reciprocal_ranks(values.numpy(), case.proponents).mean()
            assert found[method][at][form] == pytest.approx(expected, abs=1e-3)
    assert all(x["normalised"] is None for x in found["trak"])
    monkeypatch.setattr(tuning, "METHODS", dict.fromkeys(tuning.METHODS))
    assert tuning.tried(case, GRIDS) == found


def test_trackstar_over_checkpoints_is_the_sum_of_trackstar_at_each(case):
    settings = [
        {"dimension": 4, "damping": 0.1, "moments": True, "query_at": "own"},
        {"dimension": 4, "damping": 0.1, "moments": False, "query_at": "finetuned"},
        {"dimension": 3, "damping": 1.0},
    ]
    found = rivals.trackstar_at(case, case.bed.checkpoints, settings)
    for x, scores in zip(settings, found):
        parts = []
        for name in case.bed.checkpoints:
            net = case.tracked(name)
            moments = trackstar.second_moments(net, case.bed.documents)
            parts.append(
                trackstar.scores(
                    net,
                    case.queries,
                    case.bed.documents,
                    case.bed.finetuning,
                    dimension=x["dimension"],
                    damping=x["damping"],
                    moments=moments if x.get("moments") else None,
                    asking=case.tracked("finetuned") if x.get("query_at") == "finetuned" else None,
                )
            )
        assert torch.allclose(scores, trajectory(parts), rtol=1e-3, atol=1e-3)
    (one,) = rivals.trackstar_at(case, ["finetuned"], settings[2:])
    assert one.abs().max() <= 1 + 1e-5  # a cosine, not a sum


def test_trak_over_checkpoints_is_its_formula(case):
    """Features written out: Σ over models, the query's at each or at θ₂; and the smaller dimension
    is the first of the larger one's projections."""
    settings = [
        {"dimension": 6, "ridge": 0.1},
        {"dimension": 4, "ridge": 1.0, "query_at": "finetuned"},
    ]
    found = rivals.trak_at(case, case.bed.checkpoints, settings)
    project = trak.projector(case.layers, 6, 0)
    features = lambda name, x: project(flatten(gradients(case.tracked(name), x, trak.margin)))
    for x, scores in zip(settings, found):
        k, parts, weights = x["dimension"], [], []
        for name in case.bed.checkpoints:
            q = features("finetuned" if x.get("query_at") else name, case.queries)[:, :k].double()
            phi = features(name, case.bed.documents)[:, :k].double()
            gram = phi.mT @ phi
            gram = gram + x["ridge"] * gram.trace() / k * torch.eye(k)
            parts.append(q @ gram.inverse() @ phi.mT)
            weights.append(errors(case.bed.model(name), case.bed.documents))
        expected = sum(parts) / len(parts) * (sum(weights) / len(weights))
        difference = (scores.double() - expected).norm() / expected.norm()
        assert difference < 1e-3  # float32 features


@torch.no_grad()
def errors(model, sequences):
    """1 − p, one sequence at a time: the mean over its labelled tokens."""
    found = []
    for x in sequences:
        p = model(input_ids=torch.tensor([x.input_ids])).logits[0].softmax(-1)
        own = [1 - p[t - 1, y] for t, y in enumerate(x.labels) if t and y >= 0]
        found.append(sum(own) / len(own))
    return torch.stack(found).double()


def test_the_best_is_so_by_its_better_form_and_the_first_of_equals():
    records = [
        {"settings": {"damping": 0.1}, "raw": 0.5, "normalised": 0.6},
        {"settings": {"damping": 1.0}, "raw": 0.6, "normalised": 0.1},
        {"settings": {"damping": 2.0}, "raw": 0.2, "normalised": None},
    ]
    assert tuning.best({"x": records}) == {"x": records[0]}
    assert tuning.record({"x": records})["x"] == {
        "tried": 3,
        "best": "damping 0.1",
        "mrr": 0.6,
        "settings": {
            "damping 0.1": {"raw": 0.5, "normalised": 0.6},
            "damping 1.0": {"raw": 0.6, "normalised": 0.1},
            "damping 2.0": {"raw": 0.2},
        },
    }


@pytest.mark.parametrize(
    "grids, says",
    [
        ({"multi_stage": {"damping": [1, 2], "alpha": [1]}, "trak": {"ridge": [1]}}, "'trak': 1"),
        ({"bm25": {"k": [1]}}, r"nothing is tuned of \['bm25'\]"),
    ],
)
def test_fewer_settings_than_ours_are_refused_and_methods_that_have_none(grids, says):
    with pytest.raises(ValueError, match=says):
        tuning.tried(None, grids)


def test_a_place_of_the_query_that_there_is_not_is_refused(case):
    setting = {"dimension": 4, "ridge": 0.1, "query_at": "pretrained"}
    with pytest.raises(ValueError, match="query_at is 'pretrained'"):
        rivals.trak_at(case, ["finetuned"], [setting])
