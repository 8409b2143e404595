"""What the model of the scalability study reads."""

import pytest
import torch

from msif.core.influence import Damping
from msif.study.corpora.corpus import generate
from msif.study.scalability import texts
from msif.study.scalability.reference import problem, reference

WORDS = "the lake froze in the winter of that year and the ferry stayed at its pier".split()
MODEL = {"pieces": 300, "width": 8, "layers": 1, "heads": 2, "context": 16}


@pytest.fixture
def wiki(tmp_path, monkeypatch):
    """A folder of WikiText's files, with paragraphs that differ."""
    lines = [" = Ferry = "]
    lines += [" ".join(WORDS[n % 7 :] + [str(n)] + WORDS * 2) for n in range(30)]
    (tmp_path / "wiki.test.txt").write_text("\n".join(lines))
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return {"source": "wikitext", "folder": str(tmp_path), "files": "wiki.*.txt", "length": 16}


def test_chunks_have_the_length_and_are_drawn_by_seed(wiki):
    documents, net = texts.begun(3, wiki | {"limit": 20}, MODEL)
    assert [x.index for x in documents] == list(range(20))
    assert {len(x.input_ids) for x in documents} == {16}
    assert all(tuple(x.labels) == tuple(x.input_ids) for x in documents)
    again, same = texts.begun(3, wiki | {"limit": 20}, MODEL)
    other, _ = texts.begun(4, wiki | {"limit": 20}, MODEL)
    assert again == documents != other
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters()))
    assert net.config.hidden_size == 8 and net.config.vocab_size <= 300


def test_too_few_chunks_and_other_sources_are_refused(wiki):
    with pytest.raises(ValueError, match="chunks of 16 tokens; expected limit, 10000, at least"):
        texts.begun(0, wiki | {"limit": 10_000}, MODEL)
    with pytest.raises(ValueError, match="corpus source 'bnc'; expected one of"):
        texts.begun(0, {"source": "bnc"}, MODEL)


def test_without_a_source_it_is_the_generated_corpus():
    people = {"fine_tuned": 2, "held_out": 2, "objects": 2, "near": 0, "fillers": 5}
    documents, _ = texts.begun(1, people, {"width": 8, "layers": 1, "heads": 2})
    assert len(documents) == len(generate(1, **people).documents)


def test_a_reference_that_stops_early_has_its_residual(wiki):
    """After most products, with the residual it has; given enough it is the converged one."""
    training = {"epochs": 1, "rate": 1e-3, "batch_size": 8}
    found = problem(0, wiki | {"limit": 20}, MODEL, training, 3, 10, 4, 2)
    early, whole = (reference(found, Damping(0.1), 1e-8, most) for most in (2, None))
    assert int(early["products"]) == 2 and early["residual"].max() > 1e-8
    assert whole["residual"].max() <= 1e-8
    enough = reference(found, Damping(0.1), 1e-8, 4000)
    assert torch.allclose(enough["scores"], whole["scores"], rtol=1e-6)
