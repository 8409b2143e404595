"""Texts as a stream: numbered, tokenised one by one, refused by their numbers."""

from itertools import islice

import pytest
import torch
from support.streamed import all_scores

from msif.core import influence
from msif.core.data import load_texts, word_tokenizer
from msif.core.influence import query_gradients
from msif.core.layers import tracked
from msif.core.models import tiny_gpt_neox
from msif.scale.streaming import score_corpus, tokenised

pq = pytest.importorskip("pyarrow.parquet")


def test_texts_keep_their_number_and_lose_nothing_but_the_short_ones():
    words = word_tokenizer(["a b c"])
    found = list(tokenised(iter(["a b c", "a", "", "b c"] * 200), words, 2))
    assert [x.index for x in found[:3]] == [0, 3, 4] and len(found) == 400
    assert [words.decode(x.input_ids) for x in found[:2]] == ["a b", "b c"] and all(
        x.labels == x.input_ids for x in found
    )
    endless = tokenised(iter(lambda: "a b", None), words, 2)
    assert [x.index for x in islice(endless, 1000)] == list(range(1000))


def test_a_stream_of_what_is_no_text_or_has_no_length_is_refused():
    words = word_tokenizer(["a b c"])
    for wrong in (-1, 0, 1, 2.5, "8", None):  # before the first text is asked for
        with pytest.raises(ValueError, match="max_length is .*; expected a whole number"):
            tokenised(["a b c"], words, wrong)
    for wrong in ("a b c", {"a b": 1}):
        with pytest.raises(ValueError, match="expected a list of texts"):
            tokenised(wrong, words, 8)
    for wrong in (None, "a \ud83d"):
        with pytest.raises(ValueError, match="document 300 (is None|has '.ud83d' at character 2)"):
            list(tokenised(iter(["a b"] * 300 + [wrong]), words, 8))


def test_a_stream_of_datasets_is_scored(tmp_path, monkeypatch):
    pa, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = [f"the cat number {n % 3} sat" for n in range(10)] + ["the"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus.parquet")
    words = word_tokenizer(texts)
    model = tiny_gpt_neox(len(words), width=8, layers=1, heads=2, context=8)
    tracked_model = tracked(model)
    docs = list(tokenised(texts, words, 8))
    w = query_gradients(tracked_model, docs[:2])
    stream = tokenised(load_texts(tmp_path / "corpus.parquet", streaming=True), words, 8)
    score_corpus(tracked_model, stream, w, tmp_path / "scores", block=4)
    index, values, _ = all_scores(tmp_path / "scores")
    assert index.tolist() == list(range(10))
    torch.testing.assert_close(values, influence.score(tracked_model, docs, w).values)
