"""Laws of the matched corpus: words tell nothing about which candidate states the fact,
word order does."""

from collections import Counter

import numpy as np
import pytest

from msif.core.data import encode_documents, word_tokenizer
from msif.rivals.retrieval import bm25
from msif.study import metrics
from msif.study.corpora import matched
from msif.study.corpora.corpus import PROMPT, RELATIONS, Corpus, templates, words
from msif.study.corpora.matched import DISTRACTORS, STATEMENTS, generate


@pytest.fixture(scope="module")
def corpus():
    return generate(0, fine_tuned=6, held_out=10, statements=3, object_first=1, subject_first=2)


def of_fact(corpus, query):
    return [corpus.documents[n] for n in query["candidates"]]


def test_all_candidates_of_a_fact_are_the_same_words_in_different_orders(corpus):
    for query in corpus.queries:
        texts = [d["text"] for d in of_fact(corpus, query)]
        assert len(set(texts)) == len(texts) == 9
        assert len({tuple(sorted(text.split())) for text in texts}) == 1


def test_every_template_is_a_permutation_of_every_other():
    bags = {
        tuple(sorted(t.split())) for group in (STATEMENTS, *DISTRACTORS.values()) for t in group
    }
    assert len(bags) == 1 and {"{s}", "{o}", "{v}", "{w}", "{p}", "{n}"} <= set(bags.pop())


def test_candidates_are_the_sentences_about_the_fact_and_proponents_those_that_state_it(corpus):
    about = Counter((d["subject"], d["relation"]) for d in corpus.documents)
    for query in corpus.queries:
        fact = query["subject"], query["relation"], query["object"]
        assert all(
            (d["subject"], d["relation"], d["object"]) == fact for d in of_fact(corpus, query)
        )
        assert about[fact[:2]] == len(query["candidates"])
        assert query["proponents"] == [
            n for n in query["candidates"] if corpus.documents[n]["kind"] == "statement"
        ]
        assert len(query["proponents"]) == 3 and query["answer"] == query["object"]


def test_kinds_and_orders_are_as_many_as_asked_for(corpus):
    for query in corpus.queries:
        found = Counter((d["kind"], d["order"]) for d in of_fact(corpus, query))
        assert found.pop(("statement", "subject first")) == 3
        assert all(found.pop((kind, "object first")) == 1 for kind in matched.KINDS)
        assert (
            len(found) == 2
            and set(found.values()) == {1}
            and {order for _, order in found} == {"subject first"}
        )


def test_order_says_which_name_comes_first_and_templates_are_what_was_filled_in(corpus):
    for d in corpus.documents:
        text = d["text"].split()
        if d["kind"] == "filler":
            assert d["order"] is d["subject"] is d["object"] is d["verbs"] is None
        else:
            assert (text.index(d["subject"]) < text.index(d["object"])) is (
                d["order"] == "subject first"
            )
            bystander = (set(text) & set(matched.BYSTANDERS)).pop()
            names = dict(
                s=d["subject"], o=d["object"], p=matched.PARTICLES[d["relation"]], n=bystander
            )
            v, w = d["verbs"]
            assert d["text"] in (
                d["template"].format(**names, v=v, w=w),
                d["template"].format(**names, v=w, w=v),
            )


def test_only_statements_say_of_the_subject_that_the_fact_is_so(corpus):
    """Subject, verb, particle, object in a row, outside of a supposition."""
    for query in corpus.queries:
        for d in of_fact(corpus, query):
            told = [
                f"{d['subject']} {verb} {matched.PARTICLES[d['relation']]} {d['object']}"
                in d["text"]
                for verb in d["verbs"]
            ]
            supposed = d["kind"] == "hypothetical" and d["order"] == "subject first"
            assert any(told) is (d["kind"] == "statement" or supposed)


@pytest.mark.parametrize("stop_words", ["en", None])
def test_bm25_scores_all_candidates_alike(corpus, stop_words):
    texts = [d["text"] for d in corpus.documents]
    scores = bm25(texts, [f"{q['prompt']} {q['answer']}" for q in corpus.queries], stop_words)
    assert_chance(scores, corpus)


@pytest.mark.parametrize(
    "settings", [{}, {"stop_words": "english"}, {"norm": None}, {"sublinear_tf": True}]
)
def test_tf_idf_scores_all_candidates_alike(corpus, settings):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    weights = text.TfidfVectorizer(**settings)
    documents = weights.fit_transform([d["text"] for d in corpus.documents])
    scores = (
        weights.transform([f"{q['prompt']} {q['answer']}" for q in corpus.queries]) @ documents.T
    ).toarray()
    assert_chance(scores, corpus)


def assert_chance(scores, corpus):
    candidates, proponents = (
        [q[key] for q in corpus.queries] for key in ("candidates", "proponents")
    )
    for row, own in zip(scores, candidates):
        assert row[own].min() == row[own].max() > 0  # equal to the last bit
        assert row[own[0]] > np.delete(row, own).max()  # and it does find them, all of them
    found = metrics.reciprocal_ranks(metrics.within(scores, candidates), proponents)
    assert found == pytest.approx(
        metrics.reciprocal_ranks(metrics.within(np.zeros_like(scores), candidates), proponents)
    )
    assert found == pytest.approx(
        np.mean(
            [1 / 1] * 28
            + [1 / 2] * 21
            + [1 / 3] * 15
            + [1 / 4] * 10
            + [1 / 5] * 6
            + [1 / 6] * 3
            + [1 / 7]
        )
    )


def test_no_object_or_name_is_a_word_of_a_template(corpus):
    objects = {o for relation in RELATIONS for o in words(relation, 20)}
    texts = [
        *STATEMENTS,
        *(t for group in DISTRACTORS.values() for t in group),
        *matched.BYSTANDERS,
        *matched.VERBS.values(),
        *matched.PARTICLES.values(),
        PROMPT,
        *(q for r in RELATIONS for q in templates(r, "questions")),
    ]
    texts += [d["text"] for d in corpus.documents if d["kind"] == "filler"]
    frames = {word for text in texts for word in text.split()}
    names = {d["subject"] for d in corpus.documents} - {None}
    assert not objects & frames and not names & (frames | objects) and len(names) == 16


def test_verbs_of_a_relation_are_four_and_of_no_other():
    verbs = [verb for group in matched.VERBS.values() for verb in group.split()]
    assert matched.VERBS.keys() == matched.PARTICLES.keys() == RELATIONS.keys()
    assert all(len(group.split()) == 4 for group in matched.VERBS.values()) and not set(
        verbs
    ) & set(matched.BYSTANDERS)


def test_equal_seeds_give_equal_corpora_and_others_differ(corpus):
    again = generate(0, fine_tuned=6, held_out=10, statements=3, object_first=1, subject_first=2)
    assert again == corpus and again.digest() == corpus.digest()
    assert generate(1, fine_tuned=6, held_out=10, statements=3, subject_first=2) != corpus


def test_a_saved_corpus_comes_back_equal(corpus, tmp_path):
    corpus.save(tmp_path)
    assert Corpus.load(tmp_path) == corpus
    assert len({tuple(d) for d in corpus.documents}) == len({tuple(q) for q in corpus.queries}) == 1


def test_a_model_is_asked_about_people_whom_fine_tuning_does_not_name(corpus):
    subjects = {
        group: {d["subject"] for d in corpus.documents if d["group"] == group} for group in "FH"
    }
    assert [len(subjects[group]) for group in "FH"] == [6, 10] and not subjects["F"] & subjects["H"]
    assert {row["subject"] for row in corpus.finetuning} == subjects["F"] and {
        q["subject"] for q in corpus.queries
    } == subjects["H"]
    assert (len(corpus.finetuning), len(corpus.queries)) == (6 * 5 * 2, 10 * 5)


def test_a_word_level_model_reads_it_at_equal_lengths(corpus):
    texts = [d["text"] for d in corpus.documents]
    sequences = encode_documents(texts, word_tokenizer(texts), 64)
    for query in corpus.queries:
        assert len({len(sequences[n].input_ids) for n in query["candidates"]}) == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("objects", 21),
        ("statements", 0),
        ("statements", 9),
        ("object_first", 3),
        ("subject_first", 5),
        ("held_out", 0),
        ("fine_tuned", 0),
        ("fillers", 9999),
        ("fillers", -1),
    ],
)
def test_sizes_that_the_templates_do_not_allow_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        generate(**{name: value})
