"""Fused experts of mixtures: each is a layer of the positions that chose it."""

import pytest
import torch
from support.tiny import documents, plain_loss, relative
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from msif.core import ekfac, influence
from msif.core.capture import gradients
from msif.core.coverage import coverage
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.scale import fitting

SIZES = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8,
}


def lively(model, dtype=torch.float64):
    """In eval mode, its weights far from where they start, its experts computed as in training."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g)
    return model.to(dtype).eval()


def mixtral(experts=4, kind="eager", dtype=torch.float64):
    config = MixtralConfig(**SIZES, num_local_experts=experts)
    config._experts_implementation = kind
    return lively(MixtralForCausalLM(config), dtype)


def gpt_oss(kind="eager"):
    """Weights stored transposed, with biases; gates interleaved and clamped."""
    config = GptOssConfig(**SIZES, num_local_experts=4, head_dim=4, pad_token_id=0)
    config._experts_implementation = kind
    return lively(GptOssForCausalLM(config))


def own(model, layer, of):
    """A layer's part of tensors that are like the parameters: (o, i), an expert's bias last."""
    module, weight = model.get_submodule(layer.module), of(model.get_parameter(layer.parameter))
    if layer.expert is None:
        bias = [of(module.bias)[:, None]] if layer.bias else []
        return torch.cat([weight, *bias], 1)
    weight = weight[layer.expert]
    weight = weight.mT if module.is_transposed else weight
    if not module.has_bias:
        return weight
    bias = of(model.get_parameter(f"{layer.parameter}_bias"))[layer.expert]
    return torch.cat([weight, bias[:, None]], 1)


def expected(net, sequences):
    """{layer: (n, o, i)} of autograd, one sequence at a time."""
    found = {x.name: [] for x in net.layers}
    for s in sequences:
        net.model.zero_grad()
        plain_loss(net.model, s).backward()
        for x in net.layers:
            gradient = own(
                net.model, x, lambda p: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            )
            found[x.name].append(gradient)
    net.model.zero_grad()
    return {name: torch.stack(each) for name, each in found.items()}


MODELS = pytest.mark.parametrize("make", [mixtral, gpt_oss], ids=lambda x: x.__name__)


@MODELS
def test_every_expert_is_a_layer_and_the_router_is_left_out_by_name(make):
    net = tracked(make())
    experts = [x for x in net.names if "experts" in x]
    assert len(experts) == 2 * 2 * 4
    assert experts[0] == "model.layers.0.mlp.experts.gate_up_proj[0]"
    assert net.layers[4].parameter == "model.layers.0.mlp.experts.gate_up_proj"
    assert (net.layers[5].module, net.layers[5].expert) == ("model.layers.0.mlp.experts", 1)
    found = coverage(net)
    (left,) = found.left_out
    assert left in ("model.layers.N.mlp.gate.weight", "model.layers.N.mlp.router.weight")
    assert found.whole - found.tracked == found.left_out[left] == 2 * 4 * 8
    assert "96 %" in str(found) and left in str(found)


@MODELS
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_gradients_and_scores_of_experts_are_autograds(make, batch_size):
    net, rows = tracked(make()), documents(7)
    found, true = gradients(net, rows, loss, batch_size), expected(net, rows)
    w = {name: torch.randn(3, *D.shape[1:], dtype=torch.float64) for name, D in true.items()}
    scores = sum(torch.einsum("qoi,noi->qn", w[name], D) for name, D in true.items())
    for name, D in true.items():
        assert (found[name] - D).norm() <= 1e-10 * (1 + D.norm()), name
        assert found[name].shape == D.shape
    run = {"batch_size": batch_size}
    assert relative(influence.score(net, rows, w, **run).values, scores) < 1e-10
    tokens = influence.token_scores(net, rows, w, **run)
    assert relative(tokens.sum(2), scores) < 1e-10


@MODELS
def test_an_experts_factors_are_of_the_positions_that_chose_it(make):
    net, rows = tracked(make(), r"layers\.1\.mlp\.experts"), documents(7)
    chosen, true = {x.name: [] for x in net.layers}, expected(net, rows)
    for s in rows:  # what each expert reads, and its output's gradient, of one sequence
        for name, pairs in routed(net, s).items():
            chosen[name].append(pairs)
    factors = ekfac.fit(net, rows, labels="true", batch_size=3)
    for x in net.layers:
        a, g = (torch.cat([pair[k] for pair in chosen[x.name]]) for k in (0, 1))
        F = factors.factors[x.name]
        if not len(a):
            assert not F.eigenvalues.any()
            continue
        assert relative(F.basis_in * F.in_values @ F.basis_in.mT, a.mT @ a / len(a)) < 1e-10
        B = F.basis_out[0] * F.out_values[0] @ F.basis_out[0].mT
        assert relative(B, g.mT @ g / len(g)) < 1e-10
        squares = (F.basis_out[0].mT @ true[x.name] @ F.basis_in).square().mean(0)
        assert relative(F.eigenvalues[0], squares) < 1e-10
        assert F.positions.item() == pytest.approx(len(a) / len(rows))


def routed(net, sequence):
    """{expert: (a (m, i), g (m, o))} of one sequence, through the model's own eager forward pass:
    a product of an expert is F.linear or @ with a view of the parameter that holds all."""
    model, found = net.model, {}
    places = {}
    for x in net.layers:
        weight = model.get_parameter(x.parameter)
        places[weight[x.expert].data_ptr()] = x

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            weights = [y for y in args if isinstance(y, torch.Tensor) and y.data_ptr() in places]
            if weights and function.__name__ in ("linear", "__matmul__", "matmul"):
                x = places[weights[0].data_ptr()]
                module = model.get_submodule(x.module)
                a = args[0].detach()
                a = torch.cat([a, a.new_ones(len(a), 1)], 1) if module.has_bias else a
                found[x.name] = [a, torch.zeros_like(out)]
                out.register_hook(lambda g, name=x.name: found[name].__setitem__(1, g))
            return out

    with Watching():
        plain_loss(model, sequence).backward()
    model.zero_grad()
    return found


@MODELS
def test_the_models_own_ways_to_compute_experts_give_the_same_logits_and_are_put_back(make):
    model, ids = make(), torch.tensor([[1, 2, 3, 4, 5]])
    before = model(input_ids=ids).logits
    module = model.model.layers[0].mlp.experts
    gradients(tracked(model), documents(3), loss)
    assert "forward" not in vars(module)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_batched_products_in_float32_have_the_gradients_of_eager_ones():
    rows = documents(5)
    batched, eager = (mixtral(kind=x, dtype=torch.float32) for x in ("batched_mm", "eager"))
    batched.load_state_dict(eager.state_dict())
    found, true = gradients(tracked(batched), rows, loss), expected(tracked(eager), rows)
    for name, D in true.items():
        assert (found[name] - D).norm() <= 1e-4 * (1e-3 + D.norm()), name


def test_an_expert_that_nothing_chose_has_no_curvature_and_is_named_where_that_matters():
    model = mixtral(experts=8)
    for block in model.model.layers:
        block.mlp.gate.weight.data[3] = 0  # never among the two highest
        block.mlp.gate.weight.data[4:] *= 100
    net, rows = tracked(model), documents(4)
    factors = ekfac.fit(net, rows, labels="true", batch_size=3)
    idle = [name for name, x in factors.factors.items() if not x.eigenvalues.any()]
    assert idle and all("experts" in name for name in idle)
    query = influence.query_gradients(net, rows[:1])
    stage = influence.Stage(factors, influence.Damping(0.1))
    with pytest.raises(ValueError, match=r"experts.*\[\d\].*absolute"):
        influence.precondition(query, [stage])
    absolute = influence.Stage(factors, influence.Damping(0.1, relative=False))
    assert influence.precondition(query, [absolute])


@MODELS
def test_a_fit_on_disk_is_the_fit_in_memory(make, tmp_path):
    net, rows = tracked(make()), documents(7)
    one = ekfac.fit(net, rows, labels="true", batch_size=3)
    two = fitting.fit(tmp_path / "f", net, rows, labels="true", batch_size=3)
    for name, x in one.factors.items():
        v = torch.randn(2, *x.eigenvalues.shape[1:], dtype=torch.float64)
        a, b = (y.apply(lambda e, mean: 1 / (e + 1e-2), v) for y in (x, two.factors[name]))
        assert relative(a, b) < 1e-8, name
    assert two.header["coverage"]["left_out"] == list(coverage(net).left_out)


def test_experts_can_be_chosen_or_left_out_by_a_pattern():
    model = mixtral()
    assert tracked(model, r"gate_up_proj\[2\]").names == [
        f"model.layers.{k}.mlp.experts.gate_up_proj[2]" for k in range(2)
    ]
    net = tracked(model, r"self_attn")
    assert not any("experts" in x for x in net.names)
    assert "experts.gate_up_proj" in str(coverage(net))
