"""What one set of scores looks like inside: by layer and stage, by document, by setting, and by the draws of its factors."""

import numpy as np
import torch

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition, query_gradients, score, self_influence
from msif.core.layers import Tracked
from msif.study import metrics


def by_layer(case, damping, alpha, top=10, batch_size=64):
    """{"pre-training documents" and "fine-tuning rows": {layer: (q,) share}}: of the summed score of a query's `top` documents (rows of
    fine-tuning) of the stage, the part that passes through each layer's weights. A query's shares sum to 1; one may be negative."""
    tuned, base, chain = (
        case.bed.model("finetuned"),
        case.bed.model("pretrained"),
        case.chain(damping, alpha),
    )
    w = precondition(query_gradients(Tracked(tuned, case.layers), case.queries), chain)
    found = {}
    for stage, net, data, vectors in (
        ("pre-training documents", base, case.bed.documents, w[0]),
        ("fine-tuning rows", tuned, case.bed.finetuning, w[1]),
    ):
        scores = score(
            Tracked(net, case.layers), data, vectors, batch_size=batch_size, per_layer=True
        )
        best = scores.values.topk(min(top, len(data)), dim=1).indices
        total = scores.values.gather(1, best).sum(1)
        found[stage] = {
            name: (x.gather(1, best).sum(1) / total).cpu().numpy()
            for name, x in scores.layers.items()
        }
    return found


def passed_on(case, alpha):
    """{layer: (q,)}: ‖T₂q‖ / ‖q‖, what fine-tuning's filter leaves of each query's gradient: 1 is all, 0 nothing."""
    q = query_gradients(Tracked(case.bed.model("finetuned"), case.layers), case.queries)
    kept = Stage(case.factors["finetuned"], alpha=Damping(alpha)).transfer(q)
    return {
        name: (kept[name].flatten(1).norm(dim=1) / q[name].flatten(1).norm(dim=1)).cpu().numpy()
        for name in q
    }


def half_held_by(scores):
    """The smallest number of documents that hold half of a query's positive influence, for scores (q, n): (q,)."""
    positive = np.sort(np.clip(np.asarray(scores, dtype=float), 0, None), axis=1)[:, ::-1]
    return 1 + (np.cumsum(positive, 1) < positive.sum(1, keepdims=True) / 2).sum(1)


def held(scores, counts):
    """The share of each query's positive influence that its `counts` highest documents hold: (q, counts)."""
    positive = np.sort(np.clip(np.asarray(scores, dtype=float), 0, None), axis=1)[:, ::-1]
    return np.cumsum(positive, 1)[:, np.asarray(counts) - 1] / positive.sum(1, keepdims=True)


def over(parts, measure):
    """`measure` of each part ({name: array over its queries or documents}), put together: {name: array}."""
    found = [measure(part) for part in parts]
    return {name: np.concatenate([here[name] for here in found]) for name in found[0]}


def changed(case, chain, reference, batch_size=64):
    """`agreement` of the normalised multi-stage scores by two lists of `influence.Stage`."""
    return agreement(*(_normalised(case, stages, batch_size) for stages in (chain, reference)))


def _normalised(case, chain, batch_size):
    """Normalised multi-stage scores (q, n) on the CPU. One chain at a time: a vector of a large model is as large as the model."""
    w = precondition(
        query_gradients(Tracked(case.bed.model("finetuned"), case.layers), case.queries), chain
    )[0]
    return (
        score(
            Tracked(case.bed.model("pretrained"), case.layers),
            case.bed.documents,
            w,
            batch_size=batch_size,
        )
        .normalised()
        .cpu()
    )


def refitted(case, seed, damping, alpha, share=0.5, batch_size=64):
    """`agreement` of the normalised multi-stage scores with those by factors fitted again: other pseudo-labels in both stages, and in
    pre-training a random `share` of the documents."""
    base, tuned = case.bed.model("pretrained"), case.bed.model("finetuned")
    order = torch.randperm(len(case.bed.documents), generator=torch.Generator().manual_seed(seed))[
        : round(share * len(case.bed.documents))
    ]
    first = ekfac.fit(
        Tracked(base, case.layers),
        [case.bed.documents[n] for n in order],
        samples=2,
        batch_size=batch_size,
        seed=f"again {seed}",
    )
    last = ekfac.fit(
        Tracked(tuned, case.layers),
        case.bed.finetuning,
        samples=4,
        batch_size=batch_size,
        seed=f"again {seed}",
    )
    return changed(
        case,
        [Stage(first, Damping(damping)), Stage(last, alpha=Damping(alpha))],
        case.chain(damping, alpha),
        batch_size,
    )


def agreement(a, b, top=10):
    """{"spearman", "top"}: (q,) rank correlations of two sets of scores (q, n), and the shares of their `top` documents in common."""
    top = min(top, len(a[0]))
    best = [torch.as_tensor(x).topk(top, dim=1).indices.tolist() for x in (a, b)]
    return {
        "spearman": metrics.spearman(np.asarray(a), np.asarray(b)),
        "top": np.array([len(set(x) & set(y)) / top for x, y in zip(*best)]),
    }


def precision(scores, relevant, top=5):
    """Share of the `top` documents that are relevant, for each row of scores (q, n), ties in expectation. relevant: q lists of numbers."""
    return np.array(
        [
            _precision(np.asarray(row), set(own), top)
            for row, own in zip(scores, relevant, strict=True)
        ]
    )


def _precision(row, own, top):
    least = np.sort(row)[-top]
    above, tied = np.flatnonzero(row > least), np.flatnonzero(row == least)
    chance = (top - len(above)) / len(tied)  # of a tied document, to be among the first
    return (len(own & set(above.tolist())) + chance * len(own & set(tied.tolist()))) / top


def own_influence(case, damping, batch_size=32):
    """s(z, z) of every pre-training document at θ₁, (n,) array: how much its own weight matters to how well it is predicted, in nats."""
    stage = Stage(case.factors["pretrained"], Damping(damping))
    return (
        self_influence(
            Tracked(case.bed.model("pretrained"), case.layers),
            case.bed.documents,
            stage,
            batch_size,
        )
        .cpu()
        .numpy()
    )


def kinds(documents, scores, names, top=10):
    """{kind: (q,) share of the `top` documents that are of it} for each of `names`, scores (q, n) and corpus documents with a `kind`."""
    named = np.array([d["kind"] for d in documents])
    best = torch.as_tensor(scores).topk(min(top, len(named)), dim=1).indices.numpy()
    return {kind: (named[best] == kind).mean(1) for kind in names}


def told(case, found, top=10):
    """What the documents behind each fact of a biography state: {(fact told, relation stated or "others"): share of the `top`}.

    found: {relation told: (numbers of queries, scores (len, n) of that fact's own words)}. A statement about the person counts under
    its relation; any other document, and any other relation, under "others"."""
    documents, shares = case.bed.corpus.documents, {}
    for relation, (numbers, values) in found.items():
        best = torch.as_tensor(values).topk(top, dim=1).indices.tolist()
        labels = [
            documents[n]["relation"]
            if documents[n]["kind"] == "statement"
            and documents[n]["subject"] == case.rows[row]["subject"]
            else "others"
            for row, few in zip(numbers, best)
            for n in few
        ]
        shares |= {(relation, other): labels.count(other) / len(labels) for other in found}
        shares[relation, "others"] = 1 - sum(shares[relation, other] for other in found)
    return shares
