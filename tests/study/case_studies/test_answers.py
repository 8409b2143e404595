"""Queries are the model's own answers, or one's own."""

import pytest
from support.planted_study import planted_study

from msif.core.data import NO_LOSS
from msif.core.generation import greedy
from msif.study.case_studies import answers


@pytest.fixture(scope="module")
def study():
    return planted_study()


def test_queries_are_what_the_model_says_itself(study):
    case = study.case
    for row, query in zip(case.rows, case.queries):
        prompt = [t for t, y in zip(query.input_ids, query.labels) if y == NO_LOSS]
        answer = [t for t, y in zip(query.input_ids, query.labels) if y != NO_LOSS]
        assert greedy(case.bed.model("finetuned"), [prompt], len(answer))[0] == answer
        assert row["right"] == (row["answer"] == row["truth"]) or row["kind"] == "own"
    assert {row["kind"] for row in case.rows} == {"query", "planted", "biography", "own"}


def test_an_answer_of_one_s_own_is_kept(study):
    row = {"prompt": study.case.rows[0]["prompt"], "answer": study.case.rows[1]["answer"]}
    kept = answers.answered(study.case, [answers.own_question(study.case, row)])
    assert (kept.rows[0]["answer"], kept.rows[0]["right"], kept.rows[0]["kind"]) == (
        row["answer"],
        None,
        "own",
    )


def test_a_question_with_words_that_the_model_does_not_know_is_refused(study):
    with pytest.raises(
        ValueError, match=r"does not know \['xylophones'\]; use words of the corpus"
    ):
        answers.own_question(study.case, {"prompt": "what are xylophones like ?"})
