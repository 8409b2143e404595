"""What the score traces when the model errs: classes of documents, on a small trained pair."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest

from msif.core.data import encode_answers
from msif.study.beds.retraining import Recipe
from msif.study.beds.testbed import answers
from msif.study.corpora.corpus import generate
from msif.study.tracing import mistakes
from msif.study.tracing.case import trained_case
from msif.study.tracing.methods import multi_stage

SETTINGS = {"damping": 1e-3, "alpha": 0.1, "top": 5}


@pytest.fixture(scope="module")
def case():
    corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    recipe = Recipe(
        corpus,
        {"width": 16, "layers": 1, "heads": 2},
        {"epochs": 2, "rate": 3e-3},
        {"epochs": 1, "rate": 1e-3},
    )
    return trained_case(recipe, 0, (), samples=(1, 1))


def test_every_document_says_one_thing_of_an_answer(case):
    said = [
        mistakes.said(d, "bo", "born in", "oslo")
        for d in (
            {"subject": "bo", "relation": "born in", "object": "oslo", "kind": "wrong"},
            {"subject": "bo", "relation": "born in", "object": "oslo", "kind": "near"},
            {"subject": "bo", "relation": "born in", "object": "lima"},
            {"subject": "bo", "relation": "language", "object": "oslo"},
            {"subject": "al", "relation": "born in", "object": "oslo"},
            {"subject": "al", "relation": "born in", "object": "lima"},
            {"subject": None, "relation": None, "object": None},
        )
    ]
    assert said == [*mistakes.CLASSES, "neither"]


def test_shares_of_the_top_and_of_all_documents_add_up(case):
    found = mistakes.traced(case, **SETTINGS)
    assert len(found) == len(case.bed.corpus.queries)
    for answer, row in zip(found, case.bed.corpus.queries):
        assert sum(answer.shares.values()) == pytest.approx(1) and sum(
            answer.base.values()
        ) == pytest.approx(1)
        assert answer.right == (answer.text == row["answer"])
        own = [
            d
            for d in case.bed.corpus.documents
            if (d["subject"], d["relation"]) == (row["subject"], row["relation"])
        ]
        assert sum(answer.base[name] for name in mistakes.CLASSES[:3]) == pytest.approx(
            len(own) / len(case.bed.corpus.documents)
        )


def test_scores_that_are_known_are_not_computed_again(case):
    asked = bed_answers(case)
    own = replace(case, queries=asked[:1])
    scores = multi_stage(own, own.queries, case.bed.documents, 1e-3, 0.1).normalised()
    with mock.patch.object(mistakes, "multi_stage", wraps=multi_stage) as called:
        found = mistakes.traced(own, **SETTINGS, known=scores)
    assert len(called.call_args.args[1]) == len(asked) - 1
    assert found == mistakes.traced(own, **SETTINGS)


def test_right_answers_that_were_not_traced_before_are_not_traced_for_this(case, monkeypatch):
    asked = bed_answers(case)
    texts = [
        text for text, _ in answers(case.bed.model("finetuned"), case.bed.tokenizer, case.rows)
    ]
    every_other = [(text, n % 2 == 0) for n, text in enumerate(texts)]
    monkeypatch.setattr(mistakes, "answers", lambda *_: every_other)
    own = replace(case, queries=asked[:3])  # answers 0 and 2 are right, 1 is wrong
    scores = multi_stage(own, own.queries, case.bed.documents, 1e-3, 0.1).normalised()
    found = mistakes.traced(own, **SETTINGS, known=scores)
    assert [x.right for x in found] == [True, False, True, *[False] * (len(asked) // 2 - 1)]


def bed_answers(case):
    """The model's own answers, as queries."""
    bed = case.bed
    texts = [text for text, _ in answers(bed.model("finetuned"), bed.tokenizer, bed.corpus.queries)]
    return encode_answers([r["prompt"] for r in bed.corpus.queries], texts, bed.tokenizer, 64)


def test_the_summary_holds_both_sides_and_leaves_out_an_empty_one():
    def answer(right, share):
        return mistakes.Answer(
            "oslo",
            right,
            dict.fromkeys(mistakes.CLASSES, share),
            dict.fromkeys(mistakes.CLASSES, 0.1),
        )

    both = mistakes.summary([answer(True, 0.2), answer(True, 0.4), answer(False, 0.6)])
    assert (
        both["right"]["says so"] == pytest.approx((0.3, 0.1, 0.1))
        and both["wrong"]["neither"][0] == 0.6
    )
    assert set(mistakes.summary([answer(True, 0.2)])) == {"right"}


def test_a_corpus_that_does_not_name_its_facts_is_refused(case):
    bare = SimpleNamespace(
        bed=SimpleNamespace(
            corpus=SimpleNamespace(documents=[{"text": "a b", "kind": "text"}], queries=[])
        )
    )
    with pytest.raises(ValueError, match=r"lack \['object', 'relation', 'subject'\]"):
        mistakes.traced(bare, **SETTINGS)
