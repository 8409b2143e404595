"""What is said of several corpora, and how sure."""

import re

import numpy as np
import pytest

from msif.study.kinds_of_fine_tuning import advice, worlds
from msif.study.kinds_of_fine_tuning.worlds import Mean


def test_the_mean_is_over_corpora_and_its_error_is_of_independent_ones():
    found = worlds.pooled([(0.2, 0.03), (0.6, 0.04)])
    assert found.value == pytest.approx(0.4) and found.error == pytest.approx(0.025)
    assert found.each == (0.2, 0.6)


def test_a_question_that_five_models_answer_alike_is_one_question_not_five():
    """Of models that agree the error is that of the questions: 1 / √q; of questions that agree,
    that of the models. Within a tenth: 3 standard errors of 3,000 resamples are 4 %."""
    draw = np.random.default_rng(0)
    questions = draw.standard_normal(100)
    same = np.tile(questions, (5, 1))
    assert worlds.over([same], 3000).error == pytest.approx(questions.std() / 10, rel=0.1)
    models = draw.standard_normal((40, 1))
    alike = np.tile(models, (1, 100))
    assert worlds.over([alike], 3000).error == pytest.approx(models.std() / 40**0.5, rel=0.1)


@pytest.mark.parametrize(
    "mean, place",
    [
        (Mean(0.3, 0.1, (0.1, 0.5)), "ahead of"),
        (Mean(0.3, 0.1, (-0.1, 0.7)), "level with"),  # the corpora do not agree
        (Mean(0.2, 0.1, (0.1, 0.3)), "level with"),
        (Mean(-0.3, 0.1, (-0.2, -0.4)), "behind"),
        (Mean(0.0, 0.0, (0.0, 0.0)), "level with"),
    ],
)
def test_a_difference_is_claimed_where_it_is_sure_and_of_every_corpus(mean, place):
    assert mean.place == place


def test_a_setting_is_chosen_where_it_is_not_judged():
    first, second, third = [[3.0], [1.0], [0.0]], [[0.0], [1.0], [5.0]], [[0.0], [4.0], [2.0]]
    assert worlds.chosen([first, second]) == [2, 0]
    assert worlds.chosen([first, second, third]) == [2, 1, 2]
    assert worlds.chosen([first]) == [0]


def outcomes(effects, noise, seeds, draw):
    """(subsets, seeds, q) of the effects (subsets, q) with each training's own noise."""
    return effects[:, None] + noise * draw.standard_normal((len(effects), seeds, effects.shape[1]))


def test_kinds_that_follow_the_same_documents_are_alike_whatever_their_noise():
    """400 subsets, 4 seeds, 20 questions: the ratio's own spread is about .01."""
    draw = np.random.default_rng(0)
    one, other = draw.standard_normal((2, 400, 20))
    kinds = [outcomes(one, 1.0, 4, draw), outcomes(3 * one, 1.5, 4, draw)]
    assert worlds.alike(*kinds) == pytest.approx(1, abs=0.05)
    assert worlds.alike(kinds[0], outcomes(other, 1.0, 4, draw)) == pytest.approx(0, abs=0.05)


def test_a_kind_that_does_not_agree_with_itself_is_like_none():
    draw = np.random.default_rng(1)
    one = outcomes(np.zeros((3, 1)), 1.0, 2, draw)
    one[:, 1] = -one[:, 0]
    assert np.isnan(worlds.alike(one, one))


AHEAD, LEVEL, BEHIND = (Mean(x, 0.1, (x, x)) for x in (0.5, 0.1, -0.5))


@pytest.mark.parametrize(
    "finding, predicting, says",
    [
        (
            AHEAD,
            AHEAD,
            "as adapters** (.*) at finding the statements and predicting retraining \\(",
        ),
        (AHEAD, LEVEL, "as adapters.* at finding the statements, and level at predicting retrain"),
        (AHEAD, BEHIND, "which test is yours.* better at finding .*merged weights at predicting"),
        (LEVEL, BEHIND, "Merge the adapters.* better at predicting retraining, and level at find"),
        (BEHIND, AHEAD, "which test is yours.* better at predicting .*merged weights at finding"),
        (BEHIND, BEHIND, "Merge the adapters.* better at finding the statements and predicting"),
        (LEVEL, LEVEL, "or merge them.*level in both tests"),
    ],
)
def test_advice_follows_from_both_tests(finding, predicting, says):
    found = advice.adapters(finding, predicting)
    assert re.search(says.replace("**", r"\*\*"), found), found
    assert advice.signed(finding) in found and advice.signed(predicting) in found


def test_what_another_treatment_costs_has_its_own_sign():
    found = advice.without("T := I", AHEAD, BEHIND)
    assert found == (
        "T := I in place of the own T is worse at finding the statements (MRR -0.50 ± 0.10), "
        "better at predicting retraining (LDS +0.50 ± 0.10)"
    )
