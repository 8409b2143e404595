"""Text search ranks words, not characters; fusion and filters follow their formulas."""

from functools import cache
from itertools import permutations

import numpy as np
import pytest

from msif.rivals import retrieval
from msif.rivals.retrieval import bm25, embeddings, fused, kept, recall_of_top, tfidf

TEXTS = ["anna was born in oslo .", "oslo is a city .", "the cat sat .", "anna plays the piano ."]
SEARCHES = [bm25, tfidf]


def test_the_document_with_both_words_is_first_and_one_with_none_gets_nothing():
    for search in SEARCHES:
        scores = search(TEXTS, ["where was anna born ? oslo"])[0]
        assert scores.argmax() == 0 and scores[2] == 0 < scores[1]


def test_it_ranks_words_not_characters():
    """Defect 8: raw strings make BM25 rank by letters,
    which "nana nobis rolos" shares with the query."""
    for search in SEARCHES:
        scores = search([*TEXTS, "nana nobis rolos"], ["anna born oslo"])[0]
        assert scores[4] == 0


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("query", ["zyx the of", "the of", "", "?"])
def test_unknown_words_and_stop_words_find_nothing(search, query):
    scores = search(TEXTS, [query, "anna oslo"])
    assert (
        scores.shape == (2, 4)
        and scores.dtype == np.float32
        and not scores[0].any()
        and scores[1].any()
    )


@pytest.mark.parametrize("search", SEARCHES)
def test_queries_do_not_depend_on_each_other(search):
    both = search(TEXTS, ["anna oslo", "cat"])
    assert (both[1] == search(TEXTS, ["cat"])[0]).all()


def test_tfidf_is_the_cosine_of_its_formula():
    """tf · (ln((1 + n) / (1 + df)) + 1), unit length."""
    texts, query = ["red red blue", "blue green", "green green"], "red green"
    words = ["red", "blue", "green"]
    tf = np.array([[t.split().count(word) for word in words] for t in [*texts, query]], float)
    x = tf * (np.log(4 / (1 + (tf[:3] > 0).sum(0))) + 1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.allclose(tfidf(texts, [query]), x[3:] @ x[:3].T, atol=1e-6)


@cache
def semantic():
    return embeddings(
        ["a doctor treats patients", "the train leaves at noon", "a physician cares for the sick"],
        ["a doctor treats patients", "medical help"],
    )


def test_embeddings_find_meaning_without_a_word_in_common():
    scores = semantic()
    assert scores.shape == (2, 3) and scores.dtype == np.float32 and np.abs(scores).max() <= 1
    assert scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert scores[1, 2] > scores[1, 1] + 0.1 and scores[0, 2] > scores[0, 1] + 0.1


def test_embeddings_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path.name}.*modules.json"):
        embeddings(TEXTS, ["oslo"], model=tmp_path / tmp_path.name)


def test_fusion_adds_reciprocal_ranks_and_ties_share_theirs():
    found = fused([[3.0, 1.0, 2.0]], [[0.0, 5.0, 5.0]], k=60)
    assert np.allclose(found, [[1 / 61 + 1 / 63, 1 / 63 + 1 / 61.5, 1 / 62 + 1 / 61.5]], rtol=1e-12)


def test_fusion_knows_ranks_alone():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 20))
    assert (fused(a, b) == fused(np.exp(a), 5 * b - 7)).all() and (
        fused(a).argsort() == a.argsort()
    ).all()


def test_fusion_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match="1, 3.*2, 3"):
        fused(np.zeros((2, 3)), np.zeros((1, 3)))


def test_a_filter_keeps_exactly_its_share_ties_in_order():
    x = np.array([[0.0, 2.0, 1.0, 1.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert kept(x, 0.4).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]
    assert kept(x, 1).all() and (kept(x, 0.01).sum(1) == 1).all()
    with pytest.raises(ValueError, match="share is 0"):
        kept(x, 0)


def test_recall_is_the_share_of_the_top_that_is_kept():
    rng = np.random.default_rng(0)
    x, scores = rng.normal(size=(2, 4, 30))
    top = np.argsort(-scores, axis=1)[:, :10]
    expected = np.take_along_axis(kept(x, 0.3), top, 1).mean(1)
    assert np.allclose(recall_of_top(x, scores, 0.3), expected) and 0 < expected.mean() < 1
    assert (recall_of_top(scores, scores, 1 / 3) == 1).all() and (
        recall_of_top(x, scores, 1) == 1
    ).all()


def test_recall_is_the_mean_over_all_orders_of_ties_at_the_cut():
    values, scores = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([[0.1, 0.9, 0.2, 0.8, 0.3]])
    each = []
    for order in permutations(range(5)):
        order = np.array(order)  # every order of the documents breaks ties its own way
        each.append(
            recall_of_top(values[order][None] - 1e-9 * np.arange(5), scores[:, order], 0.6, k=2)[0]
        )
    assert recall_of_top(values[None], scores, 0.6, k=2)[0] == pytest.approx(np.mean(each))


def test_recall_of_a_filter_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="filter of shape"):
        recall_of_top(np.zeros((1, 3)), np.zeros((1, 4)), 0.5)


def test_word_order_wants_the_subject_before_the_object_and_near():
    documents = ["bo was born in oslo .", "oslo saw bo .", "bo oslo", "al was born in oslo ."]
    assert np.allclose(retrieval.word_order(documents, ["Bo"], ["oslo"])[0], [1 / 4, 0, 1, -1])
    assert retrieval.word_order(["old bo lives in new oslo"], ["old bo"], ["new oslo"])[
        0, 0
    ] == np.float32(1 / 5)
