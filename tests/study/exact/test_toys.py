"""The toys are what they say: their sizes, what a query's answer can come from,
and models that cannot see the future."""

import pytest
import torch

from msif.core.data import collate
from msif.core.layers import tracked_layers
from msif.core.models import logits
from msif.study.exact import toys

SHORT = {"pretraining": {"epochs": 1, "rate": 1e-3}, "finetuning": {"epochs": 1, "rate": 1e-3}}


def test_the_corpus_has_the_stated_sizes_and_every_token_is_in_the_vocabulary():
    documents, rows, queries = toys.corpus()
    assert (len(documents), len(rows), len(queries), toys.VOCABULARY) == (384, 96, 48, 48)
    assert {t for s in documents + rows + queries for t in s.input_ids} <= set(range(48))


def test_a_query_asks_about_a_subject_that_fine_tuning_never_mentions():
    documents, rows, queries = toys.corpus()
    asked, taught = ({s.input_ids[3] for s in part} for part in (queries, rows))
    assert not asked & taught and asked | taught == {s.input_ids[1] for s in documents}


@pytest.mark.parametrize("wrong", [0.0, 0.15, 1.0])
def test_the_share_of_wrong_statements_is_as_asked(wrong):
    """384 statements: a standard error of .02 at most."""
    documents, rows, queries = toys.corpus(wrong=wrong)
    right = {(s.input_ids[3], s.input_ids[5]) for s in rows + queries}
    found = sum((s.input_ids[1], s.input_ids[3]) not in right for s in documents) / len(documents)
    assert abs(found - wrong) < 0.08


@pytest.mark.parametrize("model, weights", [("transformer", 2472), ("mlp", 1488)])
def test_a_toy_has_two_models_that_share_their_tracked_layers(model, weights):
    toy = toys.toy(model, **SHORT)
    assert [str(x) for x in toy.layers] == [
        str(x) for x in tracked_layers(toy.tuned, r"layers\.\d+")
    ]
    assert sum(x.out_features * (x.in_features + x.bias) for x in toy.layers) == weights
    assert all(p.dtype == torch.float64 for net in (toy.base, toy.tuned) for p in net.parameters())
    assert not torch.equal(next(toy.base.parameters()), next(toy.tuned.parameters()))


@pytest.mark.parametrize("model", toys.MODELS.values(), ids=toys.MODELS)
def test_predictions_do_not_depend_on_later_tokens(model):
    short, long = (collate(rows) for rows in (toys.corpus()[0][:1], toys.corpus()[0][:1]))
    long.input_ids[:, 4:] = 0
    net = model()
    assert torch.allclose(logits(net, short)[:, :4], logits(net, long)[:, :4], atol=1e-6)
    assert not torch.allclose(logits(net, short)[:, 4:], logits(net, long)[:, 4:], atol=1e-6)


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="'lstm'.*transformer"):
        toys.toy("lstm", **SHORT)
