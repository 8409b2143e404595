"""Estimates of a pass: on the meta device, measured, or bounded; they never keep a fit from being
tried."""

import pytest
import torch
from support.families import SIZES, gpt2, gpt_neox, llama, qwen3
from support.tiny import documents
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BioGptConfig,
    BioGptForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from msif.core import ekfac
from msif.core.backward import frozen
from msif.core.data import Sequence
from msif.core.layers import tracked
from msif.scale import fitting, meta
from msif.scale.plan import least_memory, plan_fit

SMALL = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 16, "max_position_embeddings": 16}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=4))


def biogpt():
    return BioGptForCausalLM(BioGptConfig(**SMALL))


def recurrent_gemma():
    sizes = SMALL | {"num_hidden_layers": 3, "lru_width": 8, "attention_window_size": 8}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes))


def gpt2_classifier():
    sizes = {"vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3, pad_token_id=23))


def bart_classifier():
    sizes = {"vocab_size": 24, "d_model": 8, "max_position_embeddings": 16}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 12}
    return BartForSequenceClassification(BartConfig(**sizes, num_labels=3, eos_token_id=2))


MODELS = (mixtral, biogpt, recurrent_gemma, gpt2_classifier, bart_classifier)


@pytest.mark.parametrize("make", MODELS, ids=lambda x: x.__name__)
def test_a_model_that_does_not_run_without_numbers_is_fitted_as_in_memory(make, tmp_path):
    """float64; sequences end in the id that BART's classifier pools at."""
    model = make().double().eval()
    model.config._experts_implementation = "eager"
    rows = documents(6)
    if "classifier" in make.__name__:
        ids = [tuple(3 if token == 2 else token for token in x.input_ids) for x in rows]
        rows = [Sequence(k, (*row[:-1], 2), k % 3) for k, row in enumerate(ids)]
    net = tracked(model)
    one = ekfac.fit(net, rows, batch_size=2)
    two = fitting.fit(tmp_path / "f", net, rows, batch_size=2)
    for name, x in one.factors.items():
        assert torch.allclose(x.out_values, two.factors[name].out_values, atol=1e-10), name
        v = torch.randn(2, *x.eigenvalues.shape[1:], dtype=torch.float64)
        a, b = (y.apply(lambda e, mean: 1 / (e + mean + 1e-3), v) for y in (x, two.factors[name]))
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8), name


class Looking(nn.Module):
    """A model that looks at its numbers, as routers and classifiers do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, attention_mask=None):
        assert input_ids.sum().item() >= 0
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


DENSE = pytest.mark.parametrize("make", [gpt_neox, gpt2, llama, qwen3], ids=lambda x: x.__name__)


@DENSE
@pytest.mark.parametrize("n, s", [(1, 64), (8, 40), (4, 6)])
def test_a_measured_pass_is_near_the_one_on_the_meta_device(make, n, s):
    """Both without fused attention, of which each device keeps and counts something else."""
    model = make()
    model.set_attn_implementation("eager")
    net = tracked(model)
    exact, measured = meta.meta_pass(net, n, s), meta.measured_pass(net, n, s)
    assert (exact.how, measured.how) == ("meta", "measured")
    assert measured.logits == exact.logits
    assert measured.flops == pytest.approx(exact.flops, rel=0.1)
    for name, size in exact.kept.items():
        assert 0.8 * size <= measured.kept[name] <= 1.5 * size, name


@DENSE
@pytest.mark.parametrize("padded", [False, True], ids=["equal", "padded"])
def test_what_fused_attention_keeps_is_known_without_numbers(make, padded):
    """Long sequences, with and without a mask (2 %: the mask that all layers share)."""
    model = make()
    assert model.config._attn_implementation == "sdpa"
    net, n, s = tracked(model), 4, 256
    ids, mask = torch.zeros(n, s, dtype=torch.long), torch.ones(n, s, dtype=torch.long)
    mask[0, s // 2 :] = 0 if padded else 1

    def run():
        return model(input_ids=ids, attention_mask=mask).logits

    with frozen(model):
        kept = meta.watched(model, net.layers, run)[0]
    found = meta.meta_pass(net, n, s, padded)
    for name, size in found.kept.items():
        assert size == pytest.approx(kept[name], rel=0.02), name
    eager = make()
    eager.set_attn_implementation("eager")
    scores = meta.meta_pass(tracked(eager), n, s).kept
    assert max(scores.values()) > 1.5 * max(found.kept.values())


@DENSE
@pytest.mark.parametrize("n, s", [(1, 64), (8, 40), (4, 6)])
def test_a_bound_is_not_below_the_memory_of_the_pass(make, n, s):
    net = tracked(make())
    exact, bound = meta.meta_pass(net, n, s), meta.bound_pass(net, n, s)
    assert bound.logits == exact.logits
    assert all(bound.kept[name] >= size for name, size in exact.kept.items())
    assert bound.flops >= 0.5 * exact.flops


def test_the_ways_are_tried_in_order_and_the_plan_says_which_was_taken():
    plain = tracked(llama())
    assert meta.one_pass(plain, 2, 8).how == "meta"
    looking = tracked(Looking(llama()))
    assert meta.one_pass(looking, 2, 8).how == "measured"
    plan = plan_fit(looking, [8] * 4, batch_size=2)
    assert "measured on a short sequence" in str(plan) and "tracked: 100 %" in str(plan)
    with torch.device("meta"):
        empty = tracked(Looking(llama()))
    assert meta.one_pass(empty, 2, 8).how == "bound"
    assert "bounded by the sizes" in str(plan_fit(empty, [8] * 4, batch_size=2, memory="1GiB"))
    least = least_memory(looking, [8] * 4, batch_size=2)
    with pytest.raises(MemoryError, match=f"{least} bytes at least"):
        plan_fit(looking, [8] * 4, batch_size=2, memory=least - 1)


def test_a_measured_pass_leaves_the_model_as_it_was():
    model = mixtral().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    plan_fit(tracked(model), [5, 6, 8], batch_size=2)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in model.modules())


def test_a_token_keeps_the_inputs_of_the_experts_that_it_is_given_alone():
    """Two of four experts read a token: the inputs that wait are those of two."""
    sizes = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 16}
    few, all_of_them = (
        MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=k))
        for k in (2, 4)
    )
    inputs = [plan_fit(tracked(x), [16] * 4, memory="1GiB") for x in (few, all_of_them)]
    assert inputs[0].partitions[0].activations < inputs[1].partitions[0].activations
