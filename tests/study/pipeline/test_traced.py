"""The lines of the front table: which number of the records stands where, with its worlds."""

import math

import pytest
from scipy import stats
from support.traced_records import record, reports, world

from msif.study.pipeline import front, traced


def test_a_line_has_each_method_at_one_checkpoint_and_another_over_several(tmp_path):
    one, over = traced.rows(reports(tmp_path, world()))
    assert (one.question, over.question) == ("plain", "plain, over checkpoints")

    def said(row):
        found = [row.said(column) for column in traced.COLUMNS]
        return [(name, number.split(" ")[0]) for name, number in found]

    assert said(one) == [
        ("", "0.50"),
        ("", "0.55"),
        ("", "0.60"),
        ("hidden states, mean", "0.60"),
        ("TF-IDF", "0.90"),
    ]
    assert said(over) == [
        ("", "–"),
        ("", "0.65"),
        ("", "0.70"),
        ("TrackStar, over checkpoints", "0.65"),
        ("", "–"),
    ]


def test_the_best_rival_is_the_best_of_its_line_whatever_its_kin_have_on_the_other(tmp_path):
    """A method that is best over checkpoints does not stand for the best at one."""
    better = [*world(), record("hidden_input", 0.66), record("trackstar_trajectory", 0.99)]
    one, over = traced.rows(reports(tmp_path, better))
    assert one.said("best rival")[0] == "input embeddings, mean"
    assert over.said("best rival")[0] == "TrackStar, over checkpoints"
    published = [*world(), record("tracincp", 0.9, normalised=True)]
    one, over = traced.rows(reports(tmp_path, published))
    assert over.said("best rival")[0] == "TracInCP"
    assert one.said("best rival")[0] == "hidden states, mean"


def test_an_interval_of_one_world_is_over_questions_and_of_several_over_worlds():
    assert traced.interval([0.5], [0.1]) == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    low, high = traced.interval([0.4, 0.5, 0.6], [0.0] * 3)
    assert (low, high) == pytest.approx((0.5 - 4.303 * 0.1 / math.sqrt(3), 0.5 + 0.24843), abs=1e-3)
    assert traced.interval([0.99], [0.1])[1] == 1 and traced.interval([0.01], [0.1])[0] == 0
    assert traced.interval([1.0, 1.0], [0.0, 0.0]) == (1.0, 1.0)


def test_worlds_and_questions_are_those_of_the_records(tmp_path):
    assert [x.size for x in traced.rows(reports(tmp_path, world(1) + world(2)))] == ["2 (20)"] * 2


def test_of_one_question_no_interval_is_known(tmp_path):
    alone = [x | {"mrr_se": math.nan} for x in world()]
    one, _ = traced.rows(reports(tmp_path, alone))
    assert one.said("text search") == ("TF-IDF", "0.90")


def test_a_profile_comes_in_when_its_record_does_and_tiny_stands_in_for_none(tmp_path):
    def shown():
        return [(row.profile, row.condition) for row in traced.rows(tmp_path) if not row.over]

    assert shown() == [] and front.answers(tmp_path, []) == []
    reports(tmp_path, world(), "tiny")
    assert shown() == [("tiny", "plain")]
    named = [{**x, "condition": "named", "auc": x["mrr"], "auc_se": x["mrr_se"]} for x in world()]
    reports(tmp_path, [*named, *world()], "smollm")
    assert shown() == [("smollm", "plain"), ("smollm", "named")]
    reports(tmp_path, world())
    assert shown()[0] == ("full", "plain") and len(shown()) == 3
    assert "| `smollm`, same names |" in front.markdown(tmp_path)


def test_a_difference_over_worlds_is_paired_by_world(tmp_path):
    """The worlds differ by much, each method's gain on them by little: sure, though the two means'
    own intervals overlap."""
    records = [
        x
        for seed, d in enumerate((0.1, 0.2, 0.3))
        for x in world(seed, d, d + 0.05 + d / 100, d - 0.1)
    ]
    folder = reports(tmp_path, records)
    ((row, x),) = traced.differences(folder, traced.rows(folder), "single-stage")
    gains = [0.05 + d / 100 for d in (0.1, 0.2, 0.3)]
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (x.mean, x.low, x.high) == pytest.approx((0.052, *expected))
    assert x.low > 0 and not row.over


@pytest.mark.parametrize(
    "without",
    [("pretraining_only",), ("single_stage",), ("multi_stage",), ("bm25", "tfidf")],
    ids=lambda x: x[0],
)
def test_a_report_without_some_methods_has_a_dash_there(tmp_path, without):
    kept = [x for x in world() if not x["method"].startswith(without)]
    folder = reports(tmp_path, kept)
    assert "–" in front.markdown(folder) and front.added(folder)
    assert front.second_stage(folder)


def test_one_stage_over_checkpoints_of_pre_training_is_a_rival_too(tmp_path):
    alone = record("single_stage_pretrained_trajectory", 0.8, normalised=True)
    _, over = traced.rows(reports(tmp_path, [*world(), alone]))
    name, number = over.said("best rival")
    assert name == "single-stage at the pre-trained model, over checkpoints"
    assert number.startswith("0.80 ")


def test_the_papers_protocol_has_a_line_of_its_own(tmp_path):
    def of(mean):
        return {"mrr": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}

    methods = {name: of(0.5) for names in traced.AS_PUBLISHED.values() for name in names}
    methods |= {"multi-stage, absolute": of(0.6), "BM25": of(0.95)}
    gain = {"second stage": {"mean": 0.1, "low": 0.05, "high": 0.15}}
    numbers = {"methods": methods, "gains": gain, "models": 4, "questions": 70}
    folder = reports(tmp_path, world(), as_published=numbers)
    row = traced.rows(folder)[-1]
    assert (row.question, row.size, row.over) == ("as published", "4 (70)", False)
    assert row.said("multi-stage") == ("", "0.60 [0.50, 0.70]")
    assert row.said("pre-training alone") == ("", "–")
    assert row.said("text search") == ("BM25", "0.95 [0.85, 1.00]")  # no more than 1
    ((_, x),) = traced.differences(folder, [row], "single-stage")
    assert (x.mean, x.low, x.high) == (0.1, 0.05, 0.15)
