"""What one set of scores looks like inside: by layer and stage, by document, by setting, and by the
draws of its factors."""

from dataclasses import replace

import numpy as np
import torch

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition, query_gradients, score, self_influence
from msif.study import metrics


def by_layer(case, damping, alpha, top=10, batch_size=64):
    """{"pre-training documents" and "fine-tuning rows": {layer: (q,) share}}: of the summed score
    of a query's `top` documents (rows of fine-tuning) of the stage, the part that passes through
    each layer's weights. A query's shares sum to 1; one may be negative."""
    base, tuned = case.tracked("pretrained"), case.tracked("finetuned")
    w = precondition(query_gradients(tuned, case.queries), case.chain(damping, alpha))

    def shares(net, data, vectors):
        scores = score(net, data, vectors, batch_size=batch_size, per_layer=True)
        best = scores.values.topk(min(top, len(data)), dim=1).indices
        total = scores.values.gather(1, best).sum(1)
        parts = {name: x.gather(1, best).sum(1) / total for name, x in scores.layers.items()}
        return {name: part.cpu().numpy() for name, part in parts.items()}

    return {
        "pre-training documents": shares(base, case.bed.documents, w[0]),
        "fine-tuning rows": shares(tuned, case.bed.finetuning, w[1]),
    }


def passed_on(case, alpha):
    """{layer: (q,)}: ‖T₂q‖ / ‖q‖, what fine-tuning's filter leaves of each query's gradient: 1 is
    all, 0 nothing."""
    q = query_gradients(case.tracked("finetuned"), case.queries)
    kept = Stage(case.factors["finetuned"], alpha=Damping(alpha)).transfer(q)
    before, after = ({name: v.flatten(1).norm(dim=1) for name, v in x.items()} for x in (q, kept))
    return {name: (after[name] / before[name]).cpu().numpy() for name in q}


def half_held_by(scores):
    """The smallest number of documents that hold half of a query's positive influence, for scores
    (q, n): (q,)."""
    positive = _positive(scores)
    return 1 + (np.cumsum(positive, 1) < positive.sum(1, keepdims=True) / 2).sum(1)


def held(scores, counts):
    """The share of each query's positive influence that its `counts` highest documents hold:
    (q, counts)."""
    positive = _positive(scores)
    return np.cumsum(positive, 1)[:, np.asarray(counts) - 1] / positive.sum(1, keepdims=True)


def by_chance(documents, rows=1000):
    """Independent normal numbers in place of scores (rows, documents): what `held` and
    `half_held_by` say where there is nothing to find."""
    return np.random.default_rng(0).standard_normal((rows, documents))


def _positive(scores):
    """Each query's positive scores, 0 in place of the others, the highest first: (q, n)."""
    return np.sort(np.clip(np.asarray(scores, dtype=float), 0, None), axis=1)[:, ::-1]


def over(parts, measure):
    """`measure` of each part ({name: array over its queries or documents}), put together:
    {name: array}."""
    found = [measure(part) for part in parts]
    return {name: np.concatenate([here[name] for here in found]) for name in found[0]}


def changed(case, chain, reference, batch_size=64):
    """`agreement` of the normalised multi-stage scores by two lists of `influence.Stage`."""
    return agreement(*(_normalised(case, stages, batch_size) for stages in (chain, reference)))


def _normalised(case, chain, batch_size):
    """Normalised multi-stage scores (q, n) on the CPU. One chain at a time: a vector of a large
    model is as large as the model."""
    w = precondition(query_gradients(case.tracked("finetuned"), case.queries), chain)[0]
    found = score(case.tracked("pretrained"), case.bed.documents, w, batch_size=batch_size)
    return found.normalised().cpu()


def refitted(case, seed, damping, alpha, share=0.5, batch_size=64):
    """`agreement` of the normalised multi-stage scores with those by factors fitted again: other
    pseudo-labels in both stages, and in pre-training a random `share` of the documents."""
    base, tuned = case.tracked("pretrained"), case.tracked("finetuned")
    documents = case.bed.documents
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    part = [documents[n] for n in order[: round(share * len(documents))]]
    settings = {"batch_size": batch_size, "seed": f"again {seed}"}
    factors = {
        "pretrained": ekfac.fit(base, part, samples=2, **settings),
        "finetuned": ekfac.fit(tuned, case.bed.finetuning, samples=4, **settings),
    }
    again = replace(case, factors=factors).chain(damping, alpha)
    return changed(case, again, case.chain(damping, alpha), batch_size)


def agreement(a, b, top=10):
    """{"spearman", "top"}: (q,) rank correlations of two sets of scores (q, n), and the shares of
    their `top` documents in common."""
    top = min(top, len(a[0]))
    best = [torch.as_tensor(x).topk(top, dim=1).indices.tolist() for x in (a, b)]
    return {
        "spearman": metrics.spearman(np.asarray(a), np.asarray(b)),
        "top": np.array([len(set(x) & set(y)) / top for x, y in zip(*best)]),
    }


def precision(scores, relevant, top=5):
    """Share of the `top` documents that are relevant, for each row of scores (q, n), ties in
    expectation. relevant: q lists of numbers."""
    pairs = zip(scores, relevant, strict=True)
    return np.array([_precision(np.asarray(row), set(own), top) for row, own in pairs])


def _precision(row, own, top):
    least = np.sort(row)[-top]
    above, tied = np.flatnonzero(row > least), np.flatnonzero(row == least)
    chance = (top - len(above)) / len(tied)  # of a tied document, to be among the first
    return (len(own & set(above.tolist())) + chance * len(own & set(tied.tolist()))) / top


def own_influence(case, damping, batch_size=32):
    """s(z, z) of every pre-training document at θ₁, (n,) array: how much its own weight matters to
    how well it is predicted, in nats."""
    stage, base = Stage(case.factors["pretrained"], Damping(damping)), case.tracked("pretrained")
    return self_influence(base, case.bed.documents, stage, batch_size).cpu().numpy()


def kinds(documents, scores, names, top=10):
    """{kind: (q,) share of the `top` documents that are of it} for each of `names`, scores (q, n)
    and corpus documents with a `kind`."""
    named = np.array([d["kind"] for d in documents])
    best = torch.as_tensor(scores).topk(min(top, len(named)), dim=1).indices.numpy()
    return {kind: (named[best] == kind).mean(1) for kind in names}


def told(case, found, top=10):
    """What the documents behind each fact of a biography state: {(fact told, relation stated or
    "others"): share of the `top`}.

    found: {relation told: (numbers of queries, scores (len, n) of that fact's own words)}. A
    statement about the person counts under its relation; any other document, and any other
    relation, under "others"."""
    documents, rows, shares = case.bed.corpus.documents, case.rows, {}

    def label(document, row):
        of_person = document["kind"] == "statement" and document["subject"] == row["subject"]
        return document["relation"] if of_person else "others"

    for relation, (numbers, values) in found.items():
        best = torch.as_tensor(values).topk(top, dim=1).indices.tolist()
        labels = [label(documents[n], rows[row]) for row, few in zip(numbers, best) for n in few]
        shares |= {(relation, other): labels.count(other) / len(labels) for other in found}
        shares[relation, "others"] = 1 - sum(shares[relation, other] for other in found)
    return shares
