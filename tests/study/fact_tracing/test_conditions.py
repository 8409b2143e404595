"""Conditions of a comparison: who is ranked among whom, on scores whose ranks are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from msif.study.fact_tracing import conditions
from msif.study.fact_tracing.causal import Effects

KINDS = ["statement", "mention", "statement", "negated", "filler", "mention"]
DOCUMENTS = [
    {"kind": kind, "order": "subject first" if n % 2 else "object first"}
    for n, kind in enumerate(KINDS)
]
ROWS = [
    {"relation": "born in", "candidates": [0, 1, 2, 3]},
    {"relation": "language", "candidates": [2, 3, 5]},
]
SCORES = np.array([[3.0, 5, 4, 0, 9, 9], [0, 0, 1.0, 7, 0, 2]])


def case(rows=ROWS, proponents=((0, 2), (2,))):
    return SimpleNamespace(
        rows=rows,
        proponents=[list(x) for x in proponents],
        bed=SimpleNamespace(
            documents=DOCUMENTS, corpus=SimpleNamespace(documents=DOCUMENTS, queries=rows)
        ),
    )


def found(**more):
    tables = {
        seed: {
            "multi_stage/raw": SCORES * sign,
            "multi_stage/normalised": SCORES,
            "bm25/raw": np.zeros((2, 6)),
        }
        for seed, sign in ((1, 1), (2, -1))
    }
    return conditions.condition("matched", {1: case(), 2: case()}, tables, **more)


def test_queries_with_candidates_are_ranked_among_those_alone():
    values = found().values["multi_stage/raw"]
    assert values[0].tolist() == [1 / 2, 1 / 3] and values[1].tolist() == [1 / 2, 1]
    everywhere = conditions.condition(
        "plain", {1: case([{"relation": "r"}, {"relation": "r"}])}, {1: {"multi_stage/raw": SCORES}}
    )
    assert everywhere.values["multi_stage/raw"][0].tolist() == [1 / 4, 1 / 3]


def test_equal_scores_are_at_chance():
    where = found()
    expected = (
        (1 / 1) / 2 + (1 / 2) / 3 + (1 / 3) / 6 + (1 + 1 / 2 + 1 / 3) / 3
    ) / 2  # 2 of 4, and 1 of 3, in random order
    assert where.chance == pytest.approx(expected) == pytest.approx(where.error("bm25/raw")[0])


def test_only_chosen_queries_with_something_to_find_count():
    assert found(only={1: [True, False], 2: [False, True]}).queries == 2
    where = found(relevant={1: [[3], []], 2: [[], [5]]})
    assert where.queries == 2 and where.values["multi_stage/raw"][0].tolist() == [1 / 4]
    assert [rows[0]["relation"] for rows in where.rows] == ["born in", "language"]


def test_gains_are_paired_and_the_lead_is_over_others_methods():
    where = found()
    gain, error = where.gain("multi_stage/normalised", "multi_stage/raw")
    assert gain == pytest.approx((0 + 0 + 0 + (1 / 3 - 1)) / 4) and 0 < error < 0.3
    mean, low, high = where.paired("multi_stage/normalised", "multi_stage/raw")
    assert mean == pytest.approx(gain) and low < mean < high
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in where.intervals.values())
    assert (
        where.lead("multi_stage/raw")[0] == "bm25/raw" and where.best(where.methods) == "bm25/raw"
    )


def test_means_by_relation_and_number_of_proponents_and_the_drawing_order():
    where = found()
    assert where.by_relation("multi_stage/raw")["language"][0] == pytest.approx(2 / 3)
    assert list(where.by_proponents("multi_stage/raw")) == [1, 2]
    names, intervals = where.drawn()
    assert (
        names == ["BM25", "multi-stage"]
        and np.isnan(intervals["normalised"][0]).all()
        and np.isfinite(intervals["normalised"][1]).all()
    )


def test_records_carry_condition_seed_form_and_cost():
    records = found().records({"bm25": 0})
    assert (
        len(records) == 6
        and {r["condition"] for r in records} == {"matched"}
        and {r["seed"] for r in records} == {1, 2}
    )
    assert {r["cost"] for r in records if r["method"] == "bm25"} == {0} and all(
        r["queries"] == 2 for r in records
    )


def test_wins_by_kind_leave_out_kinds_that_a_query_lacks():
    wins = conditions.wins_by_kind(
        found(), {1: case(), 2: case()}, ["multi_stage/normalised", "bm25/raw"]
    )
    assert list(wins["bm25/raw"]) == ["mention, subject first", "negated, subject first"]
    assert all(value == (0.5, 0) for value in wins["bm25/raw"].values())
    assert (
        wins["multi_stage/normalised"]["mention, subject first"][0] == 0
    )  # 1 outranks 0 and 2; 5 outranks 2
    assert (
        wins["multi_stage/normalised"]["negated, subject first"][0] == 0.5
    )  # 3 is below 0 and 2; above 2


def test_drops_by_kind():
    effects = {
        1: Effects(
            [row["candidates"] for row in ROWS],
            [np.array([2.0, 0, 1, 0]), np.array([3.0, 0, 1])],
            [np.ones(4), np.ones(3)],
        )
    }
    drops = conditions.drops_by_kind(effects, {1: case().bed.corpus})
    assert (
        list(drops)[0] == "statement"
        and drops["statement"][0][0] == 2
        and drops["statement"][1] == 1 / 3
    )
    assert drops["mention, subject first"][0][0] == 0.5 and drops["negated, subject first"][1] == 0


def test_the_area_under_the_curve_is_one_half_for_equal_scores_and_needs_both_kinds():
    where = found(metric="auc")
    assert where.chance == 0.5 and where.error("bm25/raw") == (0.5, 0)
    assert where.values["multi_stage/normalised"][0].tolist() == [
        2 / 4,
        0,
    ]  # of (0, 2) x (1, 3), and of 2 x (3, 5)
    assert found(metric="auc", relevant={1: [[0, 1, 2, 3], [5]], 2: [[0], [3]]}).queries == 3
    assert {"auc", "auc_se"} <= set(where.records({})[0])


def test_models_that_answer_too_few_questions_are_left_out_and_none_is_refused():
    right = {1: [True, True, False, False], 3: np.array([False, False, False, True]), 4: [True] * 4}
    assert conditions.able(right, 0.5) == [1, 4] and conditions.able(right, 0) == [1, 3, 4]
    with pytest.raises(ValueError, match=r"seeds \[1, 3\] answer 50% .* at most; the floor is 60%"):
        conditions.able({1: right[1], 3: right[3]}, 0.6)
