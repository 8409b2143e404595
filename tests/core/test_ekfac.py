"""EK-FAC against its formula with explicit Kronecker products, by plain autograd in float64;
and what it must not depend on.

Tolerance 1e-8 relative where both sides are float64 sums in another order (roundoff of the damped
inverse is ~1e-11).
"""

from dataclasses import replace

import pytest
import torch
from support.tiny import (
    Regression,
    damped_inverse,
    dense_ekfac,
    documents,
    gpt2,
    lively,
    llama,
    matrix_function,
    neox,
    plain_loss,
    probe,
    pseudo,
    relative,
    weight_gradients,
)
from transformers import BertConfig, BertForSequenceClassification

from msif.core.data import Sequence
from msif.core.ekfac import covariances, fit
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.objectives import fisher_losses
from msif.scale import fitting as folders

DOCUMENTS = documents(7)
LABELS = pytest.mark.parametrize("labels", ["gaussian", "sampled", "true"])


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(
    "make, labels",
    [(neox, "gaussian"), (neox, "sampled"), (neox, "true"), (gpt2, "gaussian"), (llama, "true")],
)
def test_factors_and_apply_equal_the_dense_formula(make, labels, per_head):
    model = make()
    tracked_model = tracked(model, per_head=per_head)
    factors = fit(tracked_model, DOCUMENTS, labels=labels, samples=2, batch_size=3)
    scalars = [plain_loss] if labels == "true" else [pseudo(x) for x in fisher_losses(labels, 2, 0)]
    dense, covariance = dense_ekfac(model, tracked_model.layers, DOCUMENTS, scalars)
    for x in tracked_model.layers:
        found, (A, B) = factors.factors[x.name], covariance[x.name]
        rows = torch.arange(x.out_features)[None] if x.rows is None else x.rows
        blocks = torch.stack([B[r][:, r] for r in rows])
        assert relative(found.basis_in * found.in_values @ found.basis_in.mT, A) < 1e-8
        assert (
            relative(found.basis_out * found.out_values[:, None] @ found.basis_out.mT, blocks)
            < 1e-8
        )
        v = torch.randn(2, x.out_features, x.in_features + x.bias, dtype=torch.float64)
        for f in (lambda values, mean: values, damped_inverse):
            expected = (v.flatten(1) @ matrix_function(dense[x.name], f)).reshape_as(v)
            assert relative(factors.apply(f, {x.name: v})[x.name], expected) < 1e-8, x.name


@LABELS
def test_eigenvalues_are_means_of_squares_of_each_sequence_in_the_factors_own_basis(labels):
    model = neox()
    tracked_model = tracked(model)
    factors = fit(tracked_model, DOCUMENTS, labels=labels, samples=2, seed=5)
    scalars = [plain_loss] if labels == "true" else [pseudo(x) for x in fisher_losses(labels, 2, 5)]
    gradients = [
        weight_gradients(model, tracked_model.layers, DOCUMENTS, scalar) for scalar in scalars
    ]
    for name, x in factors.factors.items():
        D = torch.cat([drawn[name] for drawn in gradients])
        expected = (x.basis_out[0].mT @ D @ x.basis_in).square().mean(0)
        assert relative(x.eigenvalues[0], expected) < 1e-10


@LABELS
@pytest.mark.parametrize(
    "change",
    [dict(batch_size=1), dict(batch_size=2), dict(partitions=3), dict(partitions=99)],
    ids=str,
)
def test_factors_do_not_depend_on_batch_size_padding_or_partitions(labels, change):
    model = neox()
    tracked_model = tracked(model, per_head=True)
    # all in one batch, short ones padded
    once = fit(tracked_model, DOCUMENTS, labels=labels, batch_size=7)
    assert (
        relative(probe(fit(tracked_model, DOCUMENTS, labels=labels, **change)), probe(once)) < 1e-9
    )


@LABELS
def test_factors_do_not_depend_on_the_order_of_the_sequences(labels):
    model, layers = neox(), tracked_layers(neox())
    orders = [
        fit(Tracked(model, layers), x, labels=labels, batch_size=3)
        for x in (DOCUMENTS, DOCUMENTS[::-1])
    ]
    assert relative(*map(probe, orders)) < 1e-9


def test_sampled_factors_follow_their_seed():
    model, layers = neox(), tracked_layers(neox())
    a, b, c = (probe(fit(Tracked(model, layers), DOCUMENTS, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and relative(a, c) > 0.01


@pytest.mark.parametrize("labels", ["gaussian", "sampled"])
def test_eigenvalues_converge_to_the_exact_gauss_newton_diagonal(labels):
    """300 draws × 8 sequences: a mean of squares of near-normal numbers errs by √(2/2400) = 3 %;
    three times that passes."""
    model = Regression()
    sequences = [
        Sequence(x.index, tuple(i % 5 for i in x.input_ids), tuple(i % 5 for i in x.input_ids))
        for x in documents(8)
    ]
    found = fit(Tracked(model, model.layers()), sequences, labels=labels, samples=300).factors[
        "linear"
    ]
    Q = torch.kron(found.basis_out[0], found.basis_in)
    exact = torch.zeros(20, 20, dtype=torch.float64)
    for s in sequences:
        x = torch.cat(
            [model.table[list(s.input_ids)], torch.ones(len(s.input_ids), 1, dtype=torch.float64)],
            1,
        )
        for t in range(len(x) - 1):  # the last position predicts nothing
            p = model.linear(model.table[s.input_ids[t]]).softmax(0).detach()
            exact += torch.kron(p.diag() - torch.outer(p, p), torch.outer(x[t], x[t])) / len(
                sequences
            )
    assert relative(found.eigenvalues.flatten(), (Q.mT @ exact @ Q).diagonal()) < 0.1


def test_factors_of_a_classifier_with_pooled_layers_equal_the_formula():
    config = BertConfig(
        vocab_size=12,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
    )
    model = lively(BertForSequenceClassification(config))
    tracked_model = tracked(model, "attention.self.query|pooler|classifier")
    rows = [Sequence(x.index, x.input_ids, x.index % 3) for x in documents(6)]

    def plain(model, s):
        return -model(torch.tensor([s.input_ids])).logits[0].log_softmax(0)[s.labels]

    factors = fit(tracked_model, rows, labels="true", batch_size=4)
    D = weight_gradients(model, tracked_model.layers, rows, plain)
    for name, x in factors.factors.items():
        assert (
            relative(x.eigenvalues[0], (x.basis_out[0].mT @ D[name] @ x.basis_in).square().mean(0))
            < 1e-9
        )
    tokens = sum(len(x.input_ids) for x in rows) / len(rows)
    assert [float(x.positions) for x in factors.factors.values()] == [tokens, 1, 1]
    head = factors.factors["classifier"]  # with one position a sequence, g is the bias column of D
    assert relative(head.out_values.sum(), D["classifier"][:, :, -1].square().sum(1).mean()) < 1e-9


def test_a_factor_that_overflows_is_named_before_its_decomposition():
    model = neox().float()
    model.lm_head.weight.data *= 1e24  # gradients are finite, their squares are not
    with pytest.raises(FloatingPointError, match="a factor of gpt_neox.layers.*overflow"):
        fit(tracked(model), DOCUMENTS, labels="true")


def test_unknown_labels_are_refused_by_value():
    with pytest.raises(ValueError, match="'sample'.*'gaussian', 'sampled' or 'true'"):
        fit(tracked(neox()), DOCUMENTS, labels="sample")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("on_disk", [False, True])
def test_layers_that_nothing_but_rounding_reaches_are_refused_by_name(dtype, on_disk, tmp_path):
    """Only the first token's prediction counts: it attends to itself, whatever queries and keys."""
    model = llama().to(dtype)
    layers = tracked(model)
    first = [
        replace(x, labels=tuple(y if t == 1 else -100 for t, y in enumerate(x.labels)))
        for x in documents(5)
    ]

    def fitted(layers):
        if on_disk:
            return folders.fit(tmp_path / str(len(layers.names)), layers, first, batch_size=3)
        return fit(layers, first, batch_size=3)

    with pytest.raises(ValueError, match="nothing but rounding error reaches .*q_proj.*pattern="):
        fitted(layers)
    fitted(tracked(model, "v_proj|o_proj|mlp"))


def test_layers_that_do_not_run_are_named():
    model = neox()
    layers = tracked_layers(model)
    model.gpt_neox.layers[1].mlp.forward = lambda x: x  # its Linears never run
    with pytest.raises(ValueError, match="layers.1.mlp.dense_h_to_4h.* did not run"):
        covariances(Tracked(model, layers), DOCUMENTS, fisher_losses("true", 1, 0), 4)
