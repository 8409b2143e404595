"""One's own scores on the explorer's page: what is taken apart sums to the score, documents go by
their own numbers, and what does not fit is refused."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from support.explorer_page import data_of

from msif.core.data import encode_answers, encode_documents, word_tokenizer
from msif.core.ekfac import fit
from msif.core.influence import Damping, Scores, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import tiny_gpt_neox
from msif.view.explorer import page, prepared, show

TEXTS = ["ada was born in london .", "bo came from paris .", "paris is a city ."]
PAIRS = [("where was bo born ?", "paris"), ("and ada ?", "london")]


def frame(shown):
    """The page inside a notebook's output."""
    return unescape(re.search('srcdoc="([^"]*)"', shown.data)[1])


def test_three_lines_show_the_scores_of_plain_texts():
    values = torch.tensor([[0.1, 0.9, -0.3], [2.0, 0.0, 1.0]])
    for scores in (values, values.numpy(), Scores(values, torch.ones(3))):
        shown = show(scores, zip(*zip(*PAIRS)), TEXTS)
        found, plain = data_of(frame(shown)), int(isinstance(scores, Scores))
        assert found["queries"][0]["rankings"] == {
            "influence": [[1, 1, 0.9, plain], [0, 2, 0.1, plain], [2, 3, -0.3, plain]]
        }
        assert found["documents"]["1"]["words"] == [TEXTS[1]] and found["queries"][1]["answer"] == [
            " london"
        ]
        assert 'sandbox="allow-scripts"' in shown.data and "allow-same-origin" not in shown.data
    both = prepared(
        {"a": values, "b": -values},
        PAIRS,
        TEXTS,
        count=1,
        opponents=1,
        sources=["x", "y", "z"],
        groups=["g", "h"],
        labels=[{1: "states it"}, {}],
        methods={"a": "nats"},
    )
    assert (
        both["methods"] == {"a": "nats", "b": ""}
        and both["documents"][2].source == "z"
        and both["queries"][0].labels == {1: "states it"}
    )
    assert [(e.document, e.rank) for e in both["queries"][0].rankings["b"]] == [(2, 1), (1, -1)]


@pytest.fixture(scope="module")
def pair():
    tokenizer = word_tokenizer([*TEXTS, *(f"{p} {a}" for p, a in PAIRS)])
    base, tuned = (
        tiny_gpt_neox(len(tokenizer), width=8, layers=2, heads=2, context=16, seed=k)
        for k in (0, 1)
    )
    documents = encode_documents(TEXTS, tokenizer, 16)
    queries = encode_answers(*zip(*PAIRS), tokenizer, 16)
    layers = tracked_layers(base)
    tracked_base = Tracked(base, layers)
    tracked_tuned = Tracked(tuned, layers)
    stages = [
        Stage(fit(tracked_base, documents), Damping(0.1)),
        Stage(fit(tracked_tuned, queries), alpha=Damping(0.1)),
    ]
    w = precondition(query_gradients(tracked_tuned, queries), stages)[0]
    return (
        dict(tokenizer=tokenizer, model=tracked_base, w=w),
        dict(tuned=tracked_tuned, stages=stages),
        documents,
        queries,
    )


def test_with_models_the_parts_of_every_shown_document_sum_to_its_score(pair):
    given, more, documents, queries = pair
    scores = score(given["model"], documents, given["w"], per_layer=True)
    for options, has_query in (
        (given, False),
        (given | more, True),
        ({k: v for k, v in given.items() if k != "w"} | more, True),
    ):
        found = prepared(
            {"ours": scores, "reversed": -scores.values},
            queries,
            documents,
            count=2,
            opponents=1,
            **options,
        )
        for k, q in enumerate(found["queries"]):
            for entry in [e for ranking in q.rankings.values() for e in ranking]:
                whole = scores.values[k, entry.document].item()
                splits = [entry.part.tokens, entry.part.layers.values()] + [
                    entry.part.query_tokens
                ] * has_query
                assert entry.part.score == pytest.approx(whole, rel=1e-4)
                assert all(
                    sum(x)
                    == pytest.approx(whole, rel=1e-4, abs=1e-4 * scores.values.abs().max().item())
                    for x in splits
                )
            assert "".join(q.prompt_words + q.answer_words) == " ".join(
                PAIRS[k]
            ) and q.answer_words == [f" {PAIRS[k][1]}"]
            assert (q.logprobs is not None) == has_query
        page("x", **found)


def test_scores_with_layers_show_them_without_any_model(pair):
    given, _, documents, _ = pair
    scores = score(given["model"], documents, given["w"], per_layer=True)
    part = prepared(scores, PAIRS, TEXTS)["queries"][1].rankings["influence"][0].part
    assert part.tokens is None and sum(part.layers.values()) == pytest.approx(part.score, rel=1e-4)


def test_effects_are_of_the_plain_score_whatever_the_ranking(pair):
    """n documents' loss: the part of each, over N, is what the page shows."""
    given, _, documents, queries = pair
    scores = score(given["model"], documents, given["w"])
    ranked = {"normalised": scores.normalised(), "reversed": -scores.values}
    for tables, options in ((ranked, given), (ranked | {"plain": scores}, {})):
        asked = queries if options else PAIRS
        texts = documents if options else TEXTS
        found = prepared(tables, asked, texts, trained_on=50, **options)
        shown = data_of(page("x", **found))
        assert shown["trained_on"] == 50
        for k, q in enumerate(shown["queries"]):
            assert sorted(q["parts"]) == ["0", "1", "2"]
            for n, part in q["parts"].items():
                assert part["score"] == pytest.approx(scores.values[k, int(n)].item(), rel=1e-3)
    with pytest.raises(ValueError, match="trained_on without a plain score"):
        prepared(ranked, PAIRS, TEXTS, trained_on=50)


def test_documents_go_by_the_numbers_that_are_given(pair):
    """Only the names of the documents change: scores, ranks, texts and parts stay."""
    given, _, documents, queries = pair
    scores = score(given["model"], documents, given["w"])
    numbers = np.array([70, 5, 12])
    run = (scores, queries, documents)
    plain = prepared(*run, labels=[{0: "x"}, {}], **given)
    found = prepared(*run, numbers=numbers, labels=[{70: "x"}, {}], **given)
    assert found["documents"] == {int(numbers[n]): d for n, d in plain["documents"].items()}
    for ours, theirs in zip(found["queries"], plain["queries"]):
        for entry, expected in zip(ours.rankings["influence"], theirs.rankings["influence"]):
            number = numbers[expected.document]
            part = replace(expected.part, document=number)
            assert entry == replace(expected, document=number, part=part)
    shown = data_of(page("x", **found))
    assert sorted(map(int, shown["documents"])) == [5, 12, 70]
    assert shown["queries"][0]["labels"] == {"70": "x"}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scores=torch.zeros(2, 4)), r"shape \(2, 4\); expected \(2, 3\)"),
        (dict(scores={}), "there are no scores"),
        (dict(sources=["a"]), "sources has 1 entries; expected 3"),
        (dict(numbers=[0, 1]), "numbers has 2 entries; expected 3"),
        (dict(numbers=[4, 7, 4]), r"numbers has \[4\] more than once"),
        (dict(queries=["text", "text"]), "expected a pair"),
        (dict(documents=[1, 2, 3]), "type int"),
        (dict(w={}), "w or stages without model"),
        (dict(model=object()), "model without w"),
        (dict(model=object(), w={}), "queries are not all data.Sequence"),
    ],
)
def test_bad_scores_and_texts_are_refused_with_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        prepared(**dict(scores=torch.zeros(2, 3), queries=PAIRS, documents=TEXTS) | change)


def test_sequences_need_their_tokenizer_and_a_labelled_answer(pair):
    given, _, documents, queries = pair
    with pytest.raises(ValueError, match="without tokenizer"):
        prepared(torch.zeros(2, 3), queries, documents)
    silent = [replace(q, labels=(-100,) * len(q.labels)) for q in queries]
    with pytest.raises(ValueError, match="no labelled token"):
        prepared(torch.zeros(2, 3), silent, documents, tokenizer=given["tokenizer"])
