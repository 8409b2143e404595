"""Single-stage influence over checkpoints of fine-tuning."""

from itertools import combinations

import pytest
import torch

from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.tracing import methods
from msif.study.tracing.along_finetuning import METHOD, over_finetuning
from msif.study.tracing.case import trained_case

FINETUNING = {"epochs": 3, "rate": 1e-2, "batch_size": 8}
RECIPE = Recipe(
    generate(0, fine_tuned=2, held_out=2, objects=3, near=1, fillers=10),
    {"width": 8, "layers": 1, "heads": 2},
    {"epochs": 3, "rate": 1e-2, "batch_size": 16},
    FINETUNING,
    32,
)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A study of its own, with one seed's models and factors."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained_case(RECIPE, 0, [2])


def over(case, epochs, finetuning=FINETUNING):
    return over_finetuning(case, 0, finetuning, epochs, damping=1e-2)


def test_over_the_last_epoch_alone_it_is_single_stage_influence(case):
    settings = {"damping": 1e-2, "alpha": 0.1, "single_stage_damping": 1e-2}
    alone = methods.all_methods(case, **settings)["single_stage_finetuned"]
    for form, values in zip(("raw", "normalised"), alone):
        expected = methods.trajectory([values])
        torch.testing.assert_close(over(case, [3])[f"{METHOD}/{form}"], expected)


def test_over_several_epochs_it_is_the_sum_of_each(case):
    for form in ("raw", "normalised"):
        each = [over(case, [epoch])[f"{METHOD}/{form}"] for epoch in (1, 2, 3)]
        torch.testing.assert_close(over(case, [1, 2, 3])[f"{METHOD}/{form}"], sum(each))
        assert not any(
            torch.allclose(a, b) for a, b in combinations(each, 2)
        )  # models of their own


def test_fine_tuning_that_does_not_end_at_the_model_is_refused(case):
    with pytest.raises(ValueError, match="expected its own settings"):
        over(case, [1], FINETUNING | {"rate": 5e-3})


@pytest.mark.parametrize("epochs", [[], [0], [1, 4]])
def test_epochs_that_fine_tuning_does_not_have_are_refused(case, epochs):
    with pytest.raises(ValueError, match="from 1 to 3"):
        over(case, epochs)
