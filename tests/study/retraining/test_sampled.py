"""Two-stage Bayesian influence: draws near θ₁, each fine-tuned on the pair's own batches."""

import copy

import pytest
import torch

from msif.rivals import bayesian
from msif.study.beds.retraining import Recipe, measured
from msif.study.beds.training import train
from msif.study.corpora.corpus import generate
from msif.study.retraining import datamodels, sampled
from msif.study.tracing.case import trained_case

TRAINING = {"epochs": 2, "rate": 1e-2, "batch_size": 16}
RECIPE = Recipe(
    generate(0, fine_tuned=2, held_out=2, objects=3, near=1, fillers=10),
    {"width": 8, "layers": 1, "heads": 2},
    TRAINING,
    TRAINING,
    32,
)
SETTINGS = {
    "burn_in": 4,
    "between": 2,
    "step": 1e-6,
    "inverse_temperature": 1e4,
    "localisation": 1e4,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained_case(RECIPE, 0, [], samples=(1, 1))


def test_each_draw_is_fine_tuned_and_its_losses_are_of_before(case, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    found = sampled.bayesian_scores(case, RECIPE, 0, count=3, settings=SETTINGS)
    losses, f = [], []
    for model in bayesian.draws(case.bed.model("pretrained"), case.bed.documents, 3, **SETTINGS):
        losses.append(bayesian.losses_of(model, case.bed.documents, 7))
        tuned = copy.deepcopy(model)
        train(tuned, case.bed.finetuning, seed=0, **RECIPE.finetuning)
        f.append(measured(tuned, case.queries)["log_probability"])
    raw, normalised = bayesian.covariances(torch.stack(losses), torch.stack(f), 1e4)
    largest = float(raw.abs().max())  # float32 losses of tens of nats, in other batches
    torch.testing.assert_close(found["bayesian/raw"], raw, rtol=1e-2, atol=1e-2 * largest)
    assert found["bayesian/normalised"].shape == normalised.shape
    again = sampled.bayesian_scores(case, RECIPE, 0, count=3, settings=SETTINGS)
    assert again["bayesian/raw"].equal(found["bayesian/raw"])


def test_its_cost_counts_steps_losses_and_fine_tuning(case):
    documents, rows = len(case.bed.documents), len(case.bed.finetuning)
    found = datamodels.costs(case, RECIPE, count=6, settings=SETTINGS)["bayesian"]
    assert found == pytest.approx(
        (6 * 2 * rows + 2 * 32 * (4 + 5 * 2)) / documents + 1 + 6 / 3, abs=0.01
    )
