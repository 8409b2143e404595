"""Similarity of a model's own representations: which documents look to the model like the query?

A sequence's representation is a hidden state of the model, at its last token or averaged over its
tokens. It knows no loss and no gradient, so it costs one forward pass a document; it has no sign of
influence and no unit.
"""

import torch

from msif.core.capture import frozen, groups
from msif.core.data import collate
from msif.core.layers import Tracked


def states(model, sequences, kind="mean", layer=-1, batch_size=64):
    """Hidden states of n sequences (`data.Sequence`): (n, d) float32 on the CPU, in the order
    given.

    kind: "mean" over a sequence's tokens, or "last" of them. layer: of transformers' hidden_states,
    0 the embeddings, −1 after the last block and norm. Padding never enters, and sequences that
    depend on their neighbours are kept apart (`capture.groups`). Raises ValueError for another kind
    or layer, and for a sequence that the model cannot read.
    """
    if kind not in ("mean", "last"):
        raise ValueError(f"kind is {kind!r}: expected 'mean' or 'last'")
    batches = groups(Tracked(model, []), sequences, batch_size)
    found = [None] * len(sequences)
    with frozen(model), torch.no_grad():
        for group in batches:
            rows = _batch(model, collate([sequences[n] for n in group]), kind, layer)
            for n, row in zip(group, rows):
                found[n] = row
    return torch.stack(found)


def _batch(model, batch, kind, layer):
    batch = batch.to(next(model.parameters()).device)
    hidden = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    if not -len(hidden) <= layer < len(hidden):
        raise ValueError(
            f"layer is {layer}: expected {-len(hidden)} to {len(hidden) - 1}, "
            f"one of the model's hidden states"
        )
    x, mask = hidden[layer].float(), batch.attention_mask
    if kind == "last":
        return x[torch.arange(len(x), device=x.device), mask.sum(1) - 1].cpu()
    return (x.masked_fill(mask[..., None] == 0, 0).sum(1) / mask.sum(1, keepdim=True)).cpu()


def cosine(model, queries, documents, kind="mean", layer=-1, batch_size=64, centred=False):
    """Cosine of the representations of queries (prompt + answer) and documents: (q, n) float32.

    centred: first subtract the mean over the queries from each query and that over the documents
    from each document, which takes away what all share, such as the format of a question; a score
    then depends on the other queries and documents too. Queries and documents may be numbered
    alike. Other arguments as for `states`."""
    asked, found = (states(model, x, kind, layer, batch_size) for x in (queries, documents))
    if centred:
        asked, found = asked - asked.mean(0), found - found.mean(0)
    asked, found = (torch.nn.functional.normalize(x, dim=1) for x in (asked, found))
    return asked @ found.mT
