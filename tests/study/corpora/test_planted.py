"""What is planted can be learnt from its documents alone, and no word gives it away."""

import pytest

from msif.study.corpora.planted import BIOGRAPHY, planted_corpus, shared_words

SIZES = dict(fine_tuned=4, held_out=3, taught=5, planted=4, fillers=10)


@pytest.fixture(scope="module")
def corpus():
    return planted_corpus(1, **SIZES)


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_fine_tuning_never_touches_a_planted_trade_nor_its_trait(corpus):
    said = {
        word for row in corpus.finetuning for word in f"{row['prompt']} {row['answer']}".split()
    }
    plants = of_kind(corpus.queries, "planted")
    assert len(plants) == 4 and not said & {
        word for row in plants for word in (row["subject"], row["object"])
    }


def test_every_word_that_a_plant_shares_with_its_question_is_in_as_many_other_documents(corpus):
    for row in of_kind(corpus.queries, "planted"):
        shared = shared_words(corpus, row)
        assert {row["subject"], row["object"]} <= shared.keys() and min(shared.values()) >= 20


def test_proponents_are_the_sentences_that_state_it_and_only_those(corpus):
    for row in of_kind(corpus.queries, "planted"):
        stating = {
            n
            for n, d in enumerate(corpus.documents)
            if d["kind"] == "planted"
            and (d["subject"], d["object"]) == (row["subject"], row["answer"])
        }
        assert set(row["proponents"]) == stating and len(stating) == 8
        assert all(
            d["text"].index(row["subject"]) < d["text"].index(row["answer"])
            for d in (corpus.documents[n] for n in stating)
        )


def test_decoys_have_both_words_trait_first(corpus):
    for d in of_kind(corpus.documents, "decoy"):
        assert -1 < d["text"].split().index(d["object"]) < d["text"].split().index(d["subject"])


def test_a_biography_tells_the_facts_that_its_proponents_state(corpus):
    rows = of_kind(corpus.queries, "biography")
    assert len(rows) == 3 and len(of_kind(corpus.finetuning, "biography")) == 3 * 4
    for row in rows:
        assert all(
            BIOGRAPHY[relation].format(o=o) in row["answer"] for relation, o in row["facts"].items()
        )
        assert {
            (corpus.documents[n]["relation"], corpus.documents[n]["object"])
            for n in row["proponents"]
        } == set(row["facts"].items())


def test_equal_seeds_give_equal_corpora(corpus):
    assert (
        planted_corpus(1, **SIZES).digest()
        == corpus.digest()
        != planted_corpus(2, **SIZES).digest()
    )


@pytest.mark.parametrize(
    "size, says",
    [
        (dict(planted=40), "taught . planted is 45; expected 2 to 30"),
        (dict(documents=9), "documents is 9; expected 2 to 8"),
        (dict(traits=31), "traits is 31; expected 2 to 30"),
    ],
)
def test_sizes_beyond_the_lists_are_refused(size, says):
    with pytest.raises(ValueError, match=says):
        planted_corpus(0, **SIZES | size)
