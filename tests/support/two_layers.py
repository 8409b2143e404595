"""Two layers of a small model for the rivals: gradients of queries, and G + d written out."""

from functools import cache

import torch

from msif.core.capture import gradients
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.curvature.gauss_newton import GaussNewton
from support.tiny import documents, neox

MODEL = neox()
TRACKED = tracked(MODEL, "layers.1.mlp")
LAYERS = TRACKED.layers
SEQUENCES, QUERIES = documents(6), documents(3, seed=2)
PRODUCT = GaussNewton(TRACKED, SEQUENCES).product
DAMPING = {layer.name: 0.1 * (1 + i) for i, layer in enumerate(LAYERS)}


@cache
def vectors():
    """{layer: (queries, out, in)}: the gradients of the queries' losses."""
    return gradients(TRACKED, QUERIES, loss)


def flat(v):
    """(n, P): the layers' entries of each of n vectors, side by side in one row."""
    return torch.cat([x.flatten(1) for x in v.values()], 1)


@cache
def dense():
    """G + d as (P, P), from the product with every unit vector."""
    shapes = {x.name: (x.out_features, x.in_features + x.bias) for x in LAYERS}
    sizes = {name: o * i for name, (o, i) in shapes.items()}
    units = torch.eye(sum(sizes.values()), dtype=torch.float64).split(list(sizes.values()), 1)
    G = flat(PRODUCT({name: x.unflatten(1, shapes[name]) for name, x in zip(shapes, units)}))
    d = [torch.full((n,), DAMPING[name], dtype=torch.float64) for name, n in sizes.items()]
    return G + torch.cat(d).diag()
