"""A pair whose fine-tuned model is made here: once, on its own rows, resumable, and not pinned."""

import json
import shutil

import pytest
import torch
from support.small_pair import inside, needs_data, to_tune

from msif.core.data import NO_LOSS, collate
from msif.core.model_digest import model_digest
from msif.core.models import load_model, load_tokenizer, logits
from msif.core.objectives import loss
from msif.study.beds import made, pairs, training

pytestmark = needs_data


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(settings, test-bed) inside a study of its own."""
    with inside(tmp_path_factory.mktemp("study")) as folder:
        settings = to_tune(folder)
        yield settings, pairs.prepared(0, **settings), folder


def losses(net, sequences):
    batch = collate(sequences)
    return loss(logits(net, batch), batch).mean().item()


def test_the_model_learns_the_rows_in_dollys_format(tuned):
    settings, bed, folder = tuned
    net, base = bed.model("finetuned"), load_model(folder / "base")
    assert net.get_input_embeddings().num_embeddings == len(bed.tokenizer) == 50280
    base.resize_token_embeddings(50280)
    assert losses(net, bed.finetuning) < losses(base, bed.finetuning) - 3  # measured: 9 nats of 220
    assert 0 < len(bed.finetuning) == 20 - bed.history["left_out"]["too long"]
    assert all(bed.tokenizer.decode(x.labels[-1:]) == "### End" for x in bed.finetuning)
    assert all(x.labels[0] == NO_LOSS for x in bed.finetuning)


def test_it_is_trained_once_and_again_for_another_setting(tuned, monkeypatch):
    settings, bed, folder = tuned
    found = pairs.models(bed)["finetuned"]["source"]
    given = str(folder / "scratch" / "pinned"), settings["models"], settings["rows"]

    def trained(*given, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(made, "train", trained)
    again = made.models(*given, settings["max_length"])
    assert again["finetuned"]["source"] == found and again["pretrained"]["source"].endswith("base")
    monkeypatch.undo()
    training = settings["models"]["finetuned"]["finetuning"] | {"rate": 1e-3}
    changed = settings["models"] | {"finetuned": {"finetuning": training}}
    other = made.models(given[0], changed, settings["rows"], settings["max_length"])
    assert other["finetuned"]["source"] != found


def test_a_killed_training_goes_on_to_the_same_bits(tuned, monkeypatch):
    settings, bed, folder = tuned
    whole = model_digest(bed.model("finetuned"))
    source = pairs.models(bed)["finetuned"]["source"]
    shutil.rmtree(source)
    monkeypatch.setattr(training, "EVERY", 0)
    save, calls = torch.save, []

    def killed(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*given)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pairs.prepared(0, **settings)
    again = pairs.prepared(0, **settings)  # and no word of a changed model
    assert len(calls) == 3, "the second epoch alone was trained again"
    assert model_digest(again.model("finetuned")) == whole
    assert not list((folder / "scratch").glob("training-*"))


def test_what_is_made_here_is_not_pinned(tuned):
    _, _, folder = tuned
    groups = json.loads((folder / "scratch" / "pinned" / "digests.json").read_text())
    assert not any("finetuned-" in name for name in groups)
    assert any(name.endswith("base") for name in groups)


def test_an_unknown_setting_of_training_is_refused_first(tuned):
    settings, _, _ = tuned
    wrong = {"finetuning": {"epoch": 2, "rate": 1e-3}}
    with pytest.raises(TypeError, match="epoch"):
        pairs.prepared(0, **settings | {"models": settings["models"] | {"finetuned": wrong}})


@pytest.mark.parametrize("tied", [True, False])
def test_new_keys_begin_as_the_mean_of_what_they_were_split_into(tuned, tied):
    """In the embeddings and, where it is another matrix, in the head; nothing else changes."""
    _, bed, folder = tuned
    known, net = load_tokenizer(folder / "base"), load_model(folder / "base")
    net.config.tie_word_embeddings = tied
    if tied:
        net.get_output_embeddings().weight = net.get_input_embeddings().weight
    before = [x.weight.detach().clone() for x in _tables(net)]
    made.read_keys(net, bed.tokenizer, known)
    for old, table in zip(before, _tables(net)):
        new = table.weight.detach()
        assert len(new) == len(bed.tokenizer) and new[: len(known)].equal(old[: len(known)])
        for n in range(len(known), len(bed.tokenizer)):
            pieces = known(bed.tokenizer.decode([n]), add_special_tokens=False)["input_ids"]
            assert len(pieces) > 1
            torch.testing.assert_close(new[n], old[pieces].mean(0))


def _tables(net):
    return net.get_input_embeddings(), net.get_output_embeddings()
