"""Candidates: documents of several corpora, their nearest neighbours through passages,
their chunks as a model reads them."""

import json

import numpy as np
import pytest
import torch

from msif.core.data import word_tokenizer
from msif.rivals import retrieval
from msif.study.corpora import neighbours

TREES = [
    "the oak grows slowly",
    "elms and oaks lose their leaves",
    "a pine keeps its needles in winter",
]
SHIPS = [
    "a ship left the harbour",
    "the captain of the ship was asleep",
    "sailors mend nets in the harbour",
    "rain fell on the deck",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study of its own, which keeps scratch/, with two corpora."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trees.jsonl").write_text(
        "".join(json.dumps({"text": x, "title": x.split()[1]}) + "\n" for x in TREES)
        + '{"text": " ", "title": ""}\n'
    )
    (tmp_path / "ships").mkdir()
    for n in range(2):
        (tmp_path / "ships" / f"{n}.jsonl").write_text(
            "".join(json.dumps({"body": x}) + "\n" for x in SHIPS[n::2])
        )
    return tmp_path


CORPORA = [
    {"name": "trees", "source": "trees.jsonl", "limit": 10},
    {"name": "ships", "source": "ships", "column": "body", "limit": 3, "files": "*.jsonl"},
]


def test_documents_of_files_and_folders_are_sampled_by_seed_and_kept(folder):
    found = neighbours.documents(folder, CORPORA, seed=1)
    assert [x["text"] for x in found[:3]] == TREES and [x["kind"] for x in found] == [
        "trees"
    ] * 3 + ["ships"] * 3
    assert found[0]["title"] == "oak" and found[3]["title"] == "ships 0"
    assert {x["text"] for x in found[3:]} < set(SHIPS)
    assert len(list((folder / "scratch").glob("documents-*"))) == 2
    assert (
        neighbours.documents(folder, CORPORA, seed=1) == found
        and len(list((folder / "scratch").glob("documents-*"))) == 2
    )
    assert (
        len(
            {
                tuple(x["text"] for x in neighbours.documents(folder, CORPORA[1:], seed=seed))
                for seed in range(6)
            }
        )
        > 1
    )
    assert set(json.loads((folder / "digests.json").read_text())) == {
        str(folder / "trees.jsonl"),
        str(folder / "ships"),
    }


def test_what_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="no column 'words'; its columns are text, title"):
        neighbours.documents(folder, [CORPORA[0] | {"column": "words"}])
    with pytest.raises(ValueError, match="each needs its own name"):
        neighbours.documents(folder, CORPORA[:1] * 2)
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
        neighbours.documents(folder, [{"name": "x", "source": "nowhere.jsonl", "limit": 1}])


def test_passages_are_the_text_in_pieces():
    text = " ".join(map(str, range(23)))
    assert [len(x.split()) for x in neighbours.passages(text, 10)] == [10, 10, 3] and " ".join(
        neighbours.passages(text, 10)
    ) == text
    assert neighbours.passages(" \n ") == []


def test_defect_14_a_passage_stands_for_its_document_not_for_its_own_number(folder):
    """The one document about ships is last, its ship in the last passage;
    before it come long documents, so that passages outnumber documents."""
    filler = (
        "the oak and the elm grow slowly in the old garden behind the house while leaves fall " * 40
    )
    texts = [
        filler,
        filler + "pines",
        filler + "needles",
        filler + "The ship left the harbour with its captain and sailors asleep on deck.",
    ]
    found = neighbours.embeddings(texts, ["sailors of a ship", "trees in a garden"])
    assert (
        found.shape == (2, 4) and found[0].argmax() == 3 and found[0, 3] > found[0, :3].max() + 0.2
    )
    pieces = [neighbours.passages(x) for x in texts]
    each = [
        retrieval.embeddings(x, ["sailors of a ship", "trees in a garden"]).max(1) for x in pieces
    ]
    assert sum(map(len, pieces)) > 16 and np.allclose(found, np.array(each).T, atol=1e-5)


def test_embeddings_are_those_of_retrieval_and_are_computed_once(folder, monkeypatch):
    texts, queries = TREES + SHIPS, ["who slept on the ship?", "a leafy tree"]
    found = neighbours.embeddings(texts, queries, block=3)
    assert np.allclose(found, retrieval.embeddings(texts, queries), atol=1e-5)
    monkeypatch.setattr(
        neighbours, "sentence_encoder", lambda source: pytest.fail("the vectors are there")
    )
    assert np.array_equal(neighbours.embeddings(texts, queries, block=3), found)


def by_words(texts, queries):
    """A search that can be followed: words in common."""
    return np.array(
        [[len(set(q.split()) & set(x.split())) for x in texts] for q in queries], np.float32
    )


QUERIES = [
    {"prompt": "what left the harbour", "answer": "a ship"},
    {"prompt": "what does the elm lose", "answer": "leaves", "corpus": "trees"},
]
FOUND = [{"kind": "trees", "text": x} for x in TREES] + [
    {"kind": "ships", "text": x} for x in SHIPS
]


def test_candidates_are_the_first_of_each_search_and_a_shared_sample():
    found = neighbours.candidates(
        FOUND, QUERIES, methods=["bm25", "words"], first=2, random=2, seed=3, words=by_words
    )
    shared = found[0]["random"]
    assert len(found) == len(QUERIES)
    for row in found:
        assert row["random"] == shared and len(shared) == 2
        assert row["candidates"] == sorted({*shared, *row["found"]["bm25"], *row["found"]["words"]})
    values = by_words([x["text"] for x in FOUND], ["what left the harbour a ship"])[0]
    assert (
        found[0]["found"]["words"] == np.argsort(-values, kind="stable")[:2].tolist()
        and found[0]["found"]["bm25"][0] == 3
    )
    assert found[1]["found"]["bm25"][0] == 1 and all(
        n < 3 for near in found[1]["found"].values() for n in near
    ), "its own corpus alone"
    assert neighbours.candidates(FOUND, QUERIES, methods=["bm25"], first=7, random=0)[1]["found"][
        "bm25"
    ] == [1], "no word in common, no neighbour"


def test_a_search_that_cannot_be_made_is_refused_first():
    for settings, message in [
        ({"methods": ["knn"]}, "knn unknown; there are embeddings, bm25, tfidf"),
        ({"first": 0, "random": 0}, "no query would have"),
        ({"methods": [], "random": 0}, "no query would have"),
    ]:
        with pytest.raises(ValueError, match=message):
            neighbours.candidates(FOUND, QUERIES, **settings)
    with pytest.raises(ValueError, match="corpus 'planes'; there are ships, trees"):
        neighbours.candidates(FOUND, [QUERIES[0] | {"corpus": "planes"}])


def test_chunks_are_the_documents_ids_cut_up_and_know_their_document():
    texts = ["a b c d e f g", "h", "i j k", "l m"]
    tokenizer = word_tokenizer(texts)
    owner, chunks = neighbours.chunked(texts, tokenizer, 3)
    # the rests "g" and "h" have nothing to predict
    assert owner == [0, 0, 2, 3] and list(map(len, chunks)) == [
        3,
        3,
        3,
        2,
    ]
    assert [tokenizer.decode(x) for x in chunks] == ["a b c", "d e f", "i j k", "l m"]
    with pytest.raises(ValueError, match="max_length is 1"):
        neighbours.chunked(texts, tokenizer, 1)


def test_a_documents_score_is_the_sum_over_its_chunks():
    owner, values = [0, 0, 2, 3], torch.tensor([[1.0, 2, 4, -8], [-torch.inf, -torch.inf, 1, 2]])
    assert neighbours.of_documents(values, owner).tolist() == [[3, 0, 4, -8], [-torch.inf, 0, 1, 2]]
    assert neighbours.of_documents(values[0], owner, 5).tolist() == [3, 0, 4, -8, 0]
