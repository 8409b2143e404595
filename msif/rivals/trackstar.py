"""TrackStar: cosine of projected gradients, whitened by the second moments of two tasks' gradients.

D of a sequence (out, in) is projected on both sides in every layer, whitened in blocks of one
layer, then all layers together get unit length:

    φ(z) = vec(P_out D P_in),   D P_in = Σ_t g_t (a_tᵀ P_in): projected are the factors, no D forms
    R    = λ E_rows[φφᵀ] + (1 − λ) E_documents[φφᵀ]
    score(query, z) = cos((R + d)^(−1/2) φ(query), (R + d)^(−1/2) φ(z))
                                                                  positive = proponent, in [−1, 1]

rows stand for the query's task (here fine-tuning rows, which ask in the same format), documents
for pre-training; λ is chosen so that λ R_rows and (1 − λ) R_documents have the same eigenvalue at
a given place of all blocks' sorted eigenvalues: what the task's questions have in common, before
that place, is divided away. With `moments`, D is first divided element by element by √V, V the
second moment of an optimiser that keeps it as rank one (Adafactor), which scales the two factors
and forms no D either. All gradients are at one model; ours is that queries and rows may be at
another one than the documents. Source: Chang et al. 2024 (arXiv 2410.17413); d is ours, as fewer
gradients than features leave R singular.
"""

import torch
import torch.nn.functional as F

from msif.core.capture import grouped_passes
from msif.core.objectives import generator, loss
from msif.rivals.inverses import squared_gradients

PLACE = 1000 / 65536  # of the source: its first 1,000 of 65,536 components are the task's


def scores(
    tracked,
    queries,
    documents,
    rows,
    dimension=32,
    mix=None,
    damping=1e-3,
    moments=None,
    seed=0,
    batch_size=64,
    asking=None,
):
    """TrackStar's score of every document for every query, at the tracked model: (q, n) float32
    (float64 for such a model).

    queries, documents, rows: `data.Sequence`. dimension: P_out and P_in have so many columns, a
    side that is no longer than that is left as it is; dimension² features a layer are kept of
    every sequence, and R is a matrix of that size squared. mix: λ from 0 to 1, None for the rule
    above. damping: d, relative to the mean eigenvalue of each block. moments: of `second_moments`,
    or None. asking: the tracked model of queries and rows, with the same layers; None: the
    documents' own. Costs a forward and a backward pass a document. Raises ValueError for settings
    out of range.
    """
    if dimension < 1 or not (mix is None or 0 <= mix <= 1) or not damping >= 0:
        raise ValueError(
            f"dimension {dimension}, mix {mix}, damping {damping}: "
            f"expected at least 1, None or 0 to 1, at least 0"
        )
    sides = projections(tracked.layers, dimension, seed, next(tracked.model.parameters()), moments)
    asking = asking or tracked
    asked, task = (features(asking, x, sides, batch_size) for x in (queries, rows))
    found = features(tracked, documents, sides, batch_size)
    return cosines(asked, found, whitening(task, found, mix, damping))


def cosines(asked, found, white):
    """(q, n) of features of queries and documents, {layer: (·, k)}, by `whitening`'s matrices."""

    def unit(x):
        return F.normalize(torch.cat([x[name] @ white[name] for name in x], 1), dim=1)

    return unit(asked) @ unit(found).mT


def projections(layers, dimension, seed, like, moments=None):
    """{layer: (P_out (o, k), P_in (i, k))}: columns of N(0, 1/k), keyed by seed and layer; the
    identity where k ≥ the side.

    like: a tensor of the device and dtype wanted (at least float32). moments: see `second_moments`;
    folded into both sides."""
    dtype, found = torch.promote_types(like.dtype, torch.float32), {}
    for x in layers:
        shape = x.out_features, x.inputs
        sides = [
            _side(size, dimension, seed, f"{x.name}/{side}") for side, size in enumerate(shape)
        ]
        if moments:
            sides = [
                P / v.double().cpu().clamp(min=1e-30).sqrt()[:, None]
                for P, v in zip(sides, moments[x.name])
            ]
        found[x.name] = tuple(P.to(like.device, dtype) for P in sides)
    return found


def _side(size, dimension, seed, key):
    if dimension >= size:
        return torch.eye(size, dtype=torch.float64)
    rng = generator(seed, key, 0)
    return torch.randn(size, dimension, generator=rng, dtype=torch.float64) / dimension**0.5


def second_moments(tracked, sequences, batch_size=64):
    """V of each layer as Adafactor keeps it: {layer: (r (o,), c (i,))}, V = r cᵀ, from the mean
    over sequences of D².

    r: the means of its rows; c: those of its columns, divided by the mean of all."""
    totals = squared_gradients(tracked, sequences, [loss], batch_size)
    means = {name: x / len(sequences) for name, x in totals.items()}
    return {name: (x.mean(1), x.mean(0) / x.mean().clamp(min=1e-30)) for name, x in means.items()}


def features(tracked, sequences, sides, batch_size=64):
    """φ of each sequence's own loss: {layer: (n, columns of P_out · columns of P_in)}, on the
    model's device."""
    found = {}

    def consume(layer, a, g, draw, batch, group):
        P_out, P_in = (P.to(g) for P in sides[layer.name])
        a = a @ P_in[:-1] + P_in[-1] if layer.bias else a @ P_in  # the 1 where padded meets g = 0
        rows = ((g @ P_out).mT @ a).flatten(1)
        if layer.name not in found:
            found[layer.name] = rows.new_empty(len(sequences), rows.shape[1])
        found[layer.name][group] = rows

    grouped_passes(tracked, sequences, [loss], batch_size, consume)
    return {x.name: found[x.name] for x in tracked.layers}


def whitening(rows, documents, mix=None, damping=1e-3):
    """{layer: (R + d)^(−1/2)} (k, k), symmetric, of features {layer: (n, k)}; eigenvalues in
    float64."""
    task, corpus = (_second_moment_matrices(x) for x in (rows, documents))
    mix, found = mixing(task, corpus) if mix is None else mix, {}
    for name in task:
        values, Q = torch.linalg.eigh(mix * task[name] + (1 - mix) * corpus[name])
        values = values.clamp(min=0) + damping * values.mean()
        found[name] = (Q * values.clamp(min=1e-30).rsqrt() @ Q.mT).to(rows[name])
    return found


def _second_moment_matrices(features):
    return {name: x.double().mT @ x.double() / len(x) for name, x in features.items()}


def mixing(task, corpus, place=PLACE):
    """λ with λ σ_k(task) = (1 − λ) σ_k(corpus): σ_k the k-th largest eigenvalue of all blocks,
    k = place × their number.

    task, corpus: {layer: (k, k)}. 1 where only the task's σ_k is 0: it has fewer directions than
    that; 1/2 where both are."""

    def spectrum(blocks):
        values = torch.cat([torch.linalg.eigvalsh(x) for x in blocks.values()])
        return values.clamp(min=0).sort(descending=True).values

    a, b = spectrum(task), spectrum(corpus)
    k = max(1, round(place * len(a))) - 1
    total = (a[k] + b[k]).item()
    return b[k].item() / total if total else 0.5
