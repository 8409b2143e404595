"""TrackStar and TRAK of models that are trained here: each setting is what it would be alone."""

import pytest
import torch

from msif.rivals.trak import trak
from msif.study.beds.retraining import Recipe, half_subsets
from msif.study.corpora.corpus import generate
from msif.study.retraining import projected
from msif.study.tracing import rivals
from msif.study.tracing.case import trained_case

PEOPLE = generate(0, fine_tuned=2, held_out=2, objects=3, near=1, fillers=10)
MODEL = {"width": 8, "layers": 1, "heads": 2}
FIRST, SECOND = {"epochs": 3, "rate": 1e-2, "batch_size": 16}, {"epochs": 2, "rate": 1e-2}
RECIPE = Recipe(PEOPLE, MODEL, FIRST, SECOND, 32)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained_case(RECIPE, 0, [2])


def test_trak_is_of_models_that_saw_halves(case):
    settings = [{"dimension": 6, "ridge": 0.1}, {"dimension": 3, "ridge": 1.0}]
    found = projected.trak_scores(RECIPE, [4, 5], settings)
    halves = half_subsets(len(PEOPLE.documents), 2, 4)
    parts = [projected.features_at(RECIPE, half, seed, 6) for half, seed in zip(halves, (4, 5))]
    for x, table in zip(settings, found):
        k = x["dimension"]
        asked, phi = ([p[i][:, :k] for p in parts] for i in (0, 1))
        expected = trak(asked, phi, [p[2] for p in parts], x["ridge"])
        assert torch.allclose(table, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_each_setting_of_trackstar_is_its_own_at_its_documents_model(case):
    settings = [
        {"documents": "finetuned", "dimension": 3, "damping": 0.1},
        {"documents": "pretrained", "dimension": 3, "damping": 0.1},
        {"documents": "finetuned", "dimension": 4, "damping": 1.0},
    ]
    found = projected.trackstar_scores(case, settings)
    for x, table in zip(settings, found):
        (expected,) = rivals.trackstar_at(case, [x["documents"]], [x])
        assert torch.allclose(table, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], rtol=1e-2, atol=1e-2)


def test_trak_of_one_model_is_at_the_fine_tuned_one(case):
    (table,) = projected.trak_of_one(case, [{"dimension": 5, "ridge": 1.0}])
    (expected,) = rivals.trak_at(case, ["finetuned"], [{"dimension": 5, "ridge": 1.0}])
    assert torch.equal(table, expected)
