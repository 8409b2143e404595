"""Text search ranks words, not characters."""
from msif.retrieval import bm25

TEXTS = ["anna was born in oslo .", "oslo is a city .", "the cat sat .", "anna plays the piano ."]


def test_the_document_with_both_words_is_first_and_one_with_none_gets_nothing():
    scores = bm25(TEXTS, ["where was anna born ? oslo"])[0]
    assert scores.argmax() == 0 and scores[2] == 0 < scores[1]


def test_it_ranks_words_not_characters():
    """Defect 8: raw strings make BM25 rank by letters, which "nana nobis rolos" shares with the query."""
    scores = bm25([*TEXTS, "nana nobis rolos"], ["anna born oslo"])[0]
    assert scores[4] == 0


def test_unknown_words_and_stop_words_find_nothing():
    assert not bm25(TEXTS, ["zyx the of"]).any()


def test_queries_do_not_depend_on_each_other():
    both = bm25(TEXTS, ["anna oslo", "cat"])
    assert (both[1] == bm25(TEXTS, ["cat"])[0]).all()
