"""The small model to start from: its tokenizer loses nothing, and its folder is made once."""

from pathlib import Path

import pytest
from support.webnlg_miniature import SMALL, miniature, write

from msif.core.data import encode_answers, encode_documents
from msif.core.model_digest import model_digest
from msif.core.models import limits, load_model, load_tokenizer
from msif.study import paths
from msif.study.beds import testbed
from msif.study.beds.start import bpe_tokenizer, start_model, started
from msif.study.corpora.webnlg import webnlg_corpus
from msif.study.corpora.webnlg_texts import FILES

DATA = paths.root() / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), miniature())


@pytest.fixture(scope="module")
def corpus(folder):
    return webnlg_corpus(folder, **SMALL)


def test_the_tokenizer_reads_every_text_back_and_keeps_to_its_pieces(corpus):
    tokenizer = bpe_tokenizer(corpus, 300)
    assert 257 < len(tokenizer) <= 300
    for text in [d["text"] for d in corpus.documents] + [
        "Ümläut — 東京, (66063)  two spaces\n",
        "word.",
    ]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == " " + text
    assert (
        tokenizer("Aba town")["input_ids"]
        == tokenizer("is Aba town")["input_ids"][-len(tokenizer("Aba town")["input_ids"]) :]
    )
    assert bpe_tokenizer(corpus, 300).get_vocab() == tokenizer.get_vocab()


def test_the_start_is_a_model_that_the_test_bed_trains_on(corpus, tmp_path):
    first, again, other = (
        start_model(
            tmp_path / str(n),
            corpus,
            pieces=300,
            width=16,
            heads=2,
            layers=1,
            context=48,
            seed=seed,
        )
        for n, seed in enumerate((0, 0, 1))
    )
    assert (
        model_digest(load_model(first))
        == model_digest(load_model(again))
        != model_digest(load_model(other))
    )
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    assert limits(load_model(first)) == (len(load_tokenizer(first)), 48)
    training = dict(epochs=2, rate=3e-3, batch_size=16)
    testbed.build(
        tmp_path / "bed",
        corpus,
        model={"source": str(first)},
        pretraining=training,
        finetuning=training,
        max_length=48,
    )
    bed = testbed.load(tmp_path / "bed")
    assert bed.history["pretraining"][1] < bed.history["pretraining"][0]
    assert len(testbed.answers(bed.model("finetuned"), bed.tokenizer, corpus.queries)) == len(
        corpus.queries
    )


def test_a_start_is_made_once_for_its_corpus_and_settings(folder, corpus, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    settings = dict(pieces=300, width=16, heads=2, layers=1, context=48)
    first = started(corpus, **settings)
    changed = Path(first["source"]).stat().st_mtime_ns
    assert (
        started(corpus, **settings) == first and Path(first["source"]).stat().st_mtime_ns == changed
    )
    assert limits(load_model(**first))[1] == 48
    others = (
        started(corpus, seed=1, **settings),
        started(corpus, **settings | dict(width=32)),
        started(webnlg_corpus(folder, seed=1, **SMALL), **settings),
    )
    assert len({start["source"] for start in (first, *others)}) == 4


def test_a_tokenizer_needs_a_piece_for_every_byte(corpus):
    with pytest.raises(ValueError, match="pieces is 256; expected 257"):
        bpe_tokenizer(corpus, 256)


@pytest.mark.skipif(
    not all((DATA / file).is_file() for file in FILES),
    reason="no WebNLG in data/webnlg: docs/profiles.md says what to put there",
)
def test_real_texts_are_read_whole_in_few_pieces():
    real = webnlg_corpus(DATA)
    tokenizer = bpe_tokenizer(real)
    assert len(tokenizer) <= 4096
    texts = [d["text"] for d in real.documents]
    assert encode_documents(texts, tokenizer, 128) == encode_documents(texts, tokenizer, 10_000)
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == " " + text for text in texts[:500])
    for rows in (real.finetuning, real.queries):
        encode_answers([r["prompt"] for r in rows], [r["answer"] for r in rows], tokenizer, 128)
