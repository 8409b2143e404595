"""A step on a document does to an answer what its gradients say,
and leaves the models as they were; the pair is laid out as anyone's."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from msif.core.capture import gradients
from msif.core.data import Sequence, encode_answers, encode_documents, load_texts
from msif.core.layers import Tracked, tracked_layers
from msif.core.model_digest import model_digest
from msif.core.models import load_model, load_tokenizer, tiny_gpt_neox
from msif.core.objectives import log_probability, loss
from msif.study.corpora.corpus import generate
from msif.study.your_models import walkthrough

DOCUMENTS = [
    Sequence(n, ids, ids) for n, ids in enumerate([(1, 2, 3, 4), (5, 6, 7), (2, 4, 6, 8, 9)])
]
QUERIES = [Sequence(0, (1, 2, 9), (-100, -100, 9)), Sequence(1, (5, 3), (-100, 3))]


def gpt2(seed):
    torch.manual_seed(seed)
    size = {
        "vocab_size": 12,
        "n_positions": 8,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return GPT2LMHeadModel(
        GPT2Config(**size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ).eval()  # Conv1D, one of them square


@pytest.mark.parametrize(
    "build",
    [lambda seed: tiny_gpt_neox(12, width=8, layers=1, heads=2, context=8, seed=seed), gpt2],
    ids=["neox", "gpt2"],
)
def test_a_small_step_does_what_the_gradients_say(build):
    """f(θ₂ + δ) − f(θ₂) = ∇f(θ₂)ᵀ δ to first order, with δ along −∇ℓ_z(θ₁)."""
    base, tuned = build(0).double(), build(1).double()
    layers, length = tracked_layers(base), 1e-6
    tracked_base = Tracked(base, layers)
    tracked_tuned = Tracked(tuned, layers)
    f = gradients(tracked_tuned, QUERIES, log_probability)
    z = gradients(tracked_base, DOCUMENTS, loss)
    norms = sum(g.square().sum((1, 2)) for g in z.values()).sqrt()
    expected = -length * sum(f[name].flatten(1) @ z[name].flatten(1).T for name in f) / norms
    found = walkthrough.after_step(tracked_base, tracked_tuned, DOCUMENTS, QUERIES, length)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-10)


def test_models_are_given_back_as_they_were_even_after_an_error():
    base, tuned = (
        tiny_gpt_neox(12, width=8, layers=1, heads=2, context=8, seed=seed) for seed in (0, 1)
    )
    digests, layers = (model_digest(base), model_digest(tuned)), tracked_layers(base)
    tracked_base = Tracked(base, layers)
    tracked_tuned = Tracked(tuned, layers)
    walkthrough.after_step(tracked_base, tracked_tuned, DOCUMENTS, QUERIES, 0.1)
    with pytest.raises(ValueError):
        walkthrough.after_step(
            tracked_base,
            tracked_tuned,
            [*DOCUMENTS, Sequence(3, (99, 1), (99, 1))],
            QUERIES,
            0.1,
        )
    assert (model_digest(base), model_digest(tuned)) == digests


def test_a_pair_is_laid_out_as_anyones(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    corpus = generate(
        seed=0, fine_tuned=2, held_out=2, objects=2, statements=2, near=0, wrong=0, fillers=5
    )
    settings = {
        "model": {"width": 16, "layers": 1, "heads": 2},
        "pretraining": {"epochs": 8, "rate": 1e-2, "batch_size": 8},
        "finetuning": {"epochs": 6, "rate": 3e-3, "batch_size": 8},
        "max_length": 32,
    }
    questions = walkthrough.pair(tmp_path / "pair", corpus, questions=3, **settings)
    assert 1 <= len(questions) <= 3 and set(questions[0]) == {"prompt", "answer"}
    home, tokenizer = tmp_path / "pair", load_tokenizer(tmp_path / "pair" / "tuned")
    assert model_digest(load_model(home / "base")) != model_digest(load_model(home / "tuned"))
    assert len(encode_documents(load_texts(home / "documents.jsonl"), tokenizer, 32)) == len(
        corpus.documents
    )
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert len(
        encode_answers(*zip(*((x["prompt"], x["answer"]) for x in rows)), tokenizer, 32)
    ) == len(corpus.finetuning)
    (home / "left.txt").touch()
    assert (
        walkthrough.pair(home, corpus, questions=3, **settings) == questions
        and not (home / "left.txt").exists()
    )


def test_a_pair_that_knows_nothing_is_no_example(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    untrained = {"epochs": 1, "rate": 1e-9, "batch_size": 8}
    with pytest.raises(ValueError, match="answers none of 10 questions"):
        walkthrough.pair(
            tmp_path / "pair",
            generate(seed=0, fine_tuned=2, held_out=2, fillers=5),
            questions=3,
            model={"width": 16, "layers": 1, "heads": 2},
            pretraining=untrained,
            finetuning=untrained,
            max_length=32,
        )
