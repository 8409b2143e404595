"""One score taken apart: over the document's tokens, over the layers, and over the query's own
tokens.

The score of a document z of pre-training for a query is one inner product,

    s(z) = ∇(−f)(θ_K)ᵀ T_K ⋯ T_2 (H_1 + d_1)⁻¹ ∇ℓ_z(θ_1),

whose filters are symmetric. Filtered on the left, w = (H_1 + d_1)⁻¹ T_2 ⋯ T_K ∇(−f) meets the
document's activations: that splits s over the document's positions, Σ_t g_tᵀ W a_t. Filtered on
the right, u = T_K ⋯ T_2 (H_1 + d_1)⁻¹ ∇ℓ_z meets those of the query at θ_K: the same number, over
the query's positions. Units and sign are those of `msif.core.influence`: nats per unit of document
weight, positive = proponent. A position's share is what passes through the weights at that
position; its g_t carries the losses of all later tokens, so that the last answer token, which
predicts nothing, has none.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from msif.core.capture import frozen, gradients
from msif.core.data import NO_LOSS, collate
from msif.core.influence import check, score, token_scores
from msif.core.models import logits
from msif.core.objectives import align, loss
from msif.core.pairs import Pair
from msif.core.resources import require


@dataclass(frozen=True)
class Part:
    """The parts of one document's score for one query; each list and `layers` sum to `score`.

    document: its number. rank: 1 = strongest proponent, −1 = strongest opponent. tokens: one
    number per document token. layers: {layer name: its share}. query_tokens: one number per token
    of the query. None: not computed."""

    document: int
    rank: int
    score: float
    tokens: list | None = None
    layers: dict | None = None
    query_tokens: list | None = None


def extremes(values, count, opponents=0):
    """[(number, rank)] of the `count` highest of values (n,), rank 1, 2, …, and the `opponents`
    lowest, rank −1, −2, ….

    Ties stay in the order of the documents, at either end; no document is both. Raises ValueError
    for other shapes, for NaN, and for counts below 0."""
    values = np.asarray(torch.as_tensor(values), dtype=np.float64)
    holes = bool(np.isnan(values).any())
    if values.ndim != 1 or holes:
        raise ValueError(
            f"scores of shape {values.shape}{' with NaN' * holes}: "
            f"expected (documents,), all numbers"
        )
    if min(count, opponents) < 0:
        raise ValueError(
            f"count is {count} and opponents {opponents}: expected numbers of documents, at least 0"
        )
    highest = np.argsort(-values, kind="stable")[:count].tolist()
    from_below = np.argsort(values, kind="stable")[: count + opponents].tolist()
    lowest = [n for n in from_below if n not in highest][:opponents]
    top = [(n, rank) for rank, n in enumerate(highest, 1)]
    return top + [(n, -rank) for rank, n in enumerate(lowest, 1)]


def split(base, w, documents, ranked, *, batch_size=8, objective=loss):
    """[Part] of one query over the document's tokens and the layers; `query_tokens` is None.

    base: the model of the documents' own stage. w: the preconditioned query, {layer: (1, o, i)}.
    documents: all `data.Sequence`s; or pairs, with the objective of their stage: their tokens are
    those of both rows, and between them a zero. ranked: [(document number, rank)], the few that are
    taken apart."""
    sizes = {len(x) for x in w.values()}
    if sizes != {1}:
        raise ValueError(
            f"w holds {sorted(sizes)} queries: expected one, {{name: x[k:k + 1]}} of query k"
        )
    chosen = _chosen(documents, ranked)
    if not chosen:
        return []
    options = {"batch_size": batch_size, "objective": objective}
    found = score(base, chosen, w, per_layer=True, **options)
    tokens = token_scores(base, chosen, w, **options)[0]
    return [
        Part(
            n,
            rank,
            found.values[0, k].item(),
            _shares(x, tokens[k]),
            {name: values[0, k].item() for name, values in found.layers.items()},
        )
        for k, ((n, rank), x) in enumerate(zip(ranked, chosen))
    ]


def _shares(document, tokens):
    """A number for each word of `words.words_of`."""
    if not isinstance(document, Pair):
        return tokens[: len(document.input_ids)].tolist()
    rows = zip((document.chosen, document.rejected), tokens.chunk(2))
    chosen, rejected = (x[: len(row.input_ids)].tolist() for row, x in rows)
    return [*chosen, 0.0, *rejected]


def query_tokens(base, tuned, query, stages, documents, *, batch_size=8):
    """The scores of `documents` for one query, split over the query's positions: one list per
    document, each sums to its score.

    base, tuned: the models of the first and the last stage, `layers.Tracked`. f is the answer's
    log-probability. In memory at a time: three gradients of `batch_size` documents over all layers.
    Raises ValueError for stages with layers that the first one lacks: through those, nothing of a
    document passes that these filters know of."""
    check(stages)
    if new := [name for stage in stages for name in stage.new]:
        raise ValueError(
            f"the stages add the layers {new}: "
            f"a score over query positions is defined for equal layers alone"
        )
    few = min(batch_size, len(documents))
    require(memory=3 * 4 * tuned.weights * few, what=f"gradients of {few} documents")
    found, documents = [], _numbered(documents)
    for i in range(0, len(documents), batch_size):
        u = stages[0].inverse(gradients(base, documents[i : i + batch_size], loss, batch_size))
        for stage in stages[1:]:
            u = stage.transfer(u)
        # ∇(−f) = ∇ℓ of the answer
        found += token_scores(tuned, [query], u, objective=loss)[:, 0].tolist()
    return found


def _chosen(documents, ranked):
    """The ranked documents, numbered anew."""
    if bad := [n for n, _ in ranked if not 0 <= n < len(documents)]:
        raise ValueError(f"document {bad[0]} is ranked; there are {len(documents)} documents")
    return _numbered([documents[n] for n, _ in ranked])


def _numbered(documents):
    """The documents, each with its own number, whatever corpora they come from; a pair's is known
    to its loss."""
    return [x if isinstance(x, Pair) else replace(x, index=k) for k, x in enumerate(documents)]


def answer_log_probabilities(model, queries):
    """log p of each labelled (answer) token of each query, nats: a list of lists.

    One query at a time, as few are shown."""
    found = []
    with frozen(model), torch.no_grad():
        for query in queries:
            batch = collate([query]).to(next(model.parameters()).device)
            z, y = align(logits(model, batch), batch.labels)
            at = y[0] != NO_LOSS
            found.append(z[0, at].log_softmax(1).gather(1, y[0, at, None])[:, 0].tolist())
    return found
