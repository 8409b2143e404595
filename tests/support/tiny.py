"""Tiny float64 models, and references by plain autograd: one unpadded sequence at a time,
on the weights themselves."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from msif.core.data import NO_LOSS, Sequence, collate
from msif.core.layers import Layer
from msif.core.models import tiny_gpt_neox

VOCAB = 12


def lively(model, seed=0):
    """Float64 weights of size .4 in place of the small initial ones: no gradient is nearly zero,
    nothing nearly linear."""
    g = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for p in model.parameters():
        p.data = (p.dim() == 1) * p.data + 0.4 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return model


def neox(seed=0):
    """All Linear layers with a bias; fused q, k, v."""
    model = tiny_gpt_neox(VOCAB, width=8, layers=2, heads=2, context=8, intermediate=12)
    return lively(model, seed)


def gpt2(seed=0):
    """Conv1D: weights stored transposed."""
    config = GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=8, n_inner=12)
    return lively(GPT2LMHeadModel(config), seed)


def llama(seed=0):
    """Linear layers without a bias; grouped keys and values."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8,
    )
    return lively(LlamaForCausalLM(config), seed)


def documents(n, seed=1, first=0):
    """n sequences of 3 to 6 tokens, numbered from `first`;
    the label of every third position is left out."""
    g = torch.Generator().manual_seed(seed)

    def label(t, row):
        return NO_LOSS if t % 3 == 2 and t + 1 < len(row) else row[t]

    rows = [torch.randint(VOCAB, (3 + i % 4,), generator=g).tolist() for i in range(n)]
    return [
        Sequence(first + i, tuple(row), tuple(label(t, row) for t in range(len(row))))
        for i, row in enumerate(rows)
    ]


def logits_of(model, sequence):
    """(logits, batch) of one sequence alone."""
    batch = collate([sequence])
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits, batch


def plain_loss(model, sequence):
    """−Σ_t log p(x_t | x_<t) over the labelled tokens, written out with Python's own indexing."""
    logits, _ = logits_of(model, sequence)
    log_p = logits[0].log_softmax(-1)
    return -sum(log_p[t - 1, y] for t, y in enumerate(sequence.labels) if t > 0 and y != NO_LOSS)


def with_bias(module, weight, bias):
    """(out, in + 1): a layer's weight with its bias as the last column; (out, in) without one."""
    weight = weight.mT if isinstance(module, Conv1D) else weight
    return weight if bias is None else torch.cat([weight, bias[:, None]], 1)


def weight_gradient(model, layers, scalar):
    """{layer: (o, i)}: .grad of weight and bias after an ordinary backward pass."""
    modules = {x.name: model.get_submodule(x.name) for x in layers}
    parameters = {name: [m.weight] + [m.bias] * (m.bias is not None) for name, m in modules.items()}
    found = iter(torch.autograd.grad(scalar, sum(parameters.values(), [])))
    return {
        name: with_bias(m, next(found), None if m.bias is None else next(found))
        for name, m in modules.items()
    }


def weight_gradients(model, layers, sequences, scalar):
    """{layer: (n, o, i)} of scalar(model, sequence)."""
    each = [weight_gradient(model, layers, scalar(model, s)) for s in sequences]
    return {x.name: torch.stack([e[x.name] for e in each]) for x in layers}


def inputs_and_output_gradients(model, layers, sequence, scalar):
    """{layer: (a (s, i), g (s, o))} of one sequence."""
    kept, handles = {}, []
    for x in layers:

        def keep(module, args, output, name=x.name):
            output.retain_grad()
            kept[name] = (args[0].detach()[0], output)

        handles.append(model.get_submodule(x.name).register_forward_hook(keep))
    scalar(model, sequence).backward()
    model.zero_grad()
    [h.remove() for h in handles]
    ones = torch.ones(len(sequence.input_ids), 1, dtype=torch.float64)
    return {
        x.name: (
            torch.cat([kept[x.name][0], ones], 1) if x.bias else kept[x.name][0],
            kept[x.name][1].grad[0],
        )
        for x in layers
    }


def relative(found, expected):
    """‖found − expected‖ / ‖expected‖."""
    return ((found - expected).norm() / expected.norm()).item()


class Regression(nn.Module):
    """Convex: logits of the next token are linear in fixed features of the token (and of its
    predecessor, for the head)."""

    def __init__(self, vocab=5, features=3, head=0, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "table", torch.randn(vocab, features + head, generator=g, dtype=torch.float64)
        )
        self.features = features
        self.linear = nn.Linear(features, vocab, dtype=torch.float64)
        self.head = nn.Linear(head, vocab, bias=False, dtype=torch.float64) if head else None

    def forward(self, input_ids, attention_mask):
        """Logits, as models of transformers return them; the mask is not read."""
        x = self.table[input_ids]
        logits = self.linear(x[..., : self.features])
        if self.head is not None:
            logits = logits + self.head(nn.functional.pad(x[:, :-1, self.features :], (0, 0, 1, 0)))
        return SimpleNamespace(logits=logits)

    def layers(self):
        """Linear map and head, as `tracked_layers` describes layers."""
        return [
            Layer(name, None, m.bias is not None, m.in_features, m.out_features)
            for name, m in self.named_children()
        ]

    def vector(self):
        """All parameters in the order of `layers`, (out, in + bias) flattened."""
        return torch.cat(
            [with_bias(m, m.weight, m.bias).detach().flatten() for m in self.children()]
        )

    def parameters_of(self, vector):
        """The inverse of `vector`: named parameters, differentiable in it."""
        found = {}
        for x in self.layers():
            rows = vector[: x.out_features * (x.in_features + x.bias)]
            vector = vector[x.out_features * (x.in_features + x.bias) :]
            rows = rows.view(x.out_features, -1)
            found[f"{x.name}.weight"] = rows[:, : x.in_features]
            if x.bias:
                found[f"{x.name}.bias"] = rows[:, -1]
        return found

    def set(self, vector):
        """Put a vector's numbers in as the parameters."""
        for name, value in self.parameters_of(vector).items():
            self.get_parameter(name).data.copy_(value)
        return self


def pseudo(objective):
    """A batch objective of msif as scalar(model, sequence), one unpadded sequence at a time."""
    return lambda model, sequence: objective(*logits_of(model, sequence)).sum()


def dense_ekfac(model, layers, sequences, scalars):
    """EK-FAC by its formula: {layer: [(flat indices of the block, Q_B ⊗ Q_A, Λ flattened)]},
    and {layer: (A, B)}."""
    found, both = {}, {}
    pairs = [
        inputs_and_output_gradients(model, layers, s, scalar)
        for scalar in scalars
        for s in sequences
    ]
    gradients = [weight_gradients(model, layers, sequences, scalar) for scalar in scalars]
    for x in layers:
        a, g = (torch.cat([p[x.name][k] for p in pairs]) for k in (0, 1))
        D = torch.cat([drawn[x.name] for drawn in gradients])
        A, B = a.mT @ a / len(a), g.mT @ g / len(g)
        both[x.name], found[x.name] = (A, B), []
        for rows in torch.arange(x.out_features)[None] if x.rows is None else x.rows:
            Q = torch.kron(torch.linalg.eigh(B[rows][:, rows])[1], torch.linalg.eigh(A)[1])
            at = (rows[:, None] * len(A) + torch.arange(len(A))).flatten()
            found[x.name].append((at, Q, (D[:, rows].flatten(1) @ Q).square().mean(0)))
    return found, both


def matrix_function(blocks, f):
    """f(G) as one explicit (o·i, o·i) matrix of a layer;
    f takes eigenvalues and their mean over the layer."""
    size = sum(len(at) for at, *_ in blocks)
    mean = torch.cat([values for *_, values in blocks]).mean()
    M = torch.zeros(size, size, dtype=torch.float64)
    for at, Q, values in blocks:
        M[at[:, None], at] = Q @ torch.diag(f(values, mean)) @ Q.mT
    return M


def damped_inverse(values, mean):
    """A function f of `matrix_function`: (G + .01 × the mean eigenvalue)⁻¹."""
    return 1 / (values + 0.01 * mean)


def probe(factors, seed=3):
    """f(G) of three random directions: what scores see of the factors,
    whatever the signs of the eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    v = {
        name: torch.randn(
            3, x.out_values.numel(), len(x.in_values), generator=g, dtype=torch.float64
        )
        for name, x in factors.factors.items()
    }
    return torch.cat([x.flatten() for x in factors.apply(damped_inverse, v).values()])
