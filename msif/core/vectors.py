"""Query vectors {layer: (q, o, i)}, checked before long work: layers, shapes, finite numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from msif.core.layers import Tracked, Vectors


def same_layers(a: Iterable[str], b: Iterable[str], what: str) -> None:
    """ValueError unless two collections of layer names hold the same ones."""
    if difference := set(a) ^ set(b):
        raise ValueError(
            f"{what} do not have the same layers; only one of them has {sorted(difference)}"
        )


def check_vectors(w: Vectors, tracked: Tracked) -> int:
    """How many query vectors w ({layer: (q, o, i)}) holds.

    Raises ValueError unless they are as many for every tracked layer, of its own shape and no other
    layer's, FloatingPointError for one that is not finite. Costs one reading of w.
    """
    what = "the query vectors and the tracked layers of the candidates' model"
    same_layers(w, tracked.names, what)
    queries = finite_vectors(w, "query vectors")
    for layer in tracked.layers:
        check_shape(layer.name, w[layer.name], queries, layer.out_features, layer.inputs)
    return queries


def check_shape(name: str, x: Tensor, queries: int, outputs: int, inputs: int) -> None:
    """ValueError unless a layer's query vectors x are (q, o, i)."""
    if tuple(x.shape) != (queries, outputs, inputs):
        raise ValueError(
            f"the query vectors of {name} have the shape {tuple(x.shape)}; expected "
            f"{(queries, outputs, inputs)}: queries, outputs, and inputs with the bias"
        )


def finite_vectors(vectors: Vectors, what: str) -> int:
    """How many there are a layer; ValueError for none, FloatingPointError for NaN or infinity."""
    if not vectors or not all(x.numel() for x in vectors.values()):
        raise ValueError(f"there are no {what}: expected {{layer: (q, o, i)}}, at least one")
    for name, x in vectors.items():
        if not all(map(torch.isfinite, x.aminmax())):
            raise FloatingPointError(f"the {what} of {name} are NaN or infinite; check the queries")
    return len(next(iter(vectors.values())))
