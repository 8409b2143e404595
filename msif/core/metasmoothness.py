"""Can scores predict what retraining does? Three trainings tell beforehand.

The weights of the documents move along a random direction v ~ N(0, I), by 0, h and 2h. Where
training is smooth, each parameter goes on in the second step as it went in the first:

    S = Σᵢ (dᵢ / Σ d) · sign(θ_h − θ₀)ᵢ · sign(θ_2h − θ_h)ᵢ,   d = |θ_2h − θ₀|

S is near 1 there, and near 0 where a small change of the data gives another model. Engstrom et al.
2025, "Optimizing ML training with metagradient descent" (arXiv 2503.13751), report that attribution
by derivatives fails where S is low. Here, where it is of the parameters, notebook 11 measures both
on small models, and over five recipes does not settle it; of larger models it is not known.
"""

import math

import torch
from torch import Tensor, nn

_PLACES = ("first", "second", "last")


def document_weights(count: int, seed: int = 0, step: float = 0.1) -> Tensor:
    """Weights of `count` documents in the three trainings: (3, count), 1 + k · step · v for k = 0,
    1, 2, with v ~ N(0, I) drawn from `seed`. Multiply each document's loss by its weight.

    Raises ValueError for a step that is not positive and finite."""
    if not 0 < step < math.inf:
        raise ValueError(f"step is {step}; expected a positive, finite number, such as 0.1")
    v = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return 1 + step * torch.arange(3)[:, None] * v


def metasmoothness(models: list[nn.Module]) -> float:
    """S of three models that differ in their `document_weights` alone, in order: in [−1, 1].

    All three are trained with the same seed, batches and order. Raises ValueError for another
    number of models, for models of different parameters, where one has a parameter that is no
    finite number, and where two are equal."""
    if len(models) != 3:
        raise ValueError(f"{len(models)} models; expected three, of the weights 1, 1 + hv, 1 + 2hv")
    named = [dict(model.named_parameters()) for model in models]
    shapes = [{name: tuple(p.shape) for name, p in x.items()} for x in named]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise ValueError("the three models differ in names or shapes of parameters")
    for which, x in zip(_PLACES, named):
        if wrong := [name for name, p in x.items() if not p.detach().isfinite().all()]:
            raise ValueError(
                f"{wrong[0]} of the {which} model has numbers that are NaN or infinite; expected "
                f"finite ones: did its training diverge? Train all three with a smaller step"
            )
    for n, m in ((0, 2), (0, 1), (1, 2)):
        if all(torch.equal(p, named[m][name]) for name, p in named[n].items()):
            raise ValueError(
                f"the {_PLACES[n]} and the {_PLACES[m]} model are equal; expected three that were "
                f"trained with the weights 1, 1 + hv, 1 + 2hv: was each trained with its own?"
            )
    agreed, whole = 0.0, 0.0
    for name in named[0]:
        zero, one, two = (x[name].detach().double() for x in named)
        moved = (two - zero).abs()
        agreed += float((moved * (one - zero).sign() * (two - one).sign()).sum())
        whole += float(moved.sum())
    return agreed / whole
