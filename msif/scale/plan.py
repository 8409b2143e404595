"""What a fit needs, before it starts: partitions of the layers, memory, disk, arithmetic and time.

Sizes come from the shapes and from one forward pass on the meta device, or where the model does not
run there from what short passes keep (`msif.scale.meta`). So a plan for billions of parameters
takes seconds and no weights. What a partition takes depends on its
own layers alone, not on which others are tracked. A fit of one partition holds, for a batch of
t = n·s positions,

    the model; the activations that the backward pass to the partition's first layer needs;
    the partition's inputs a; logits, with what the loss makes of them;
    and the larger of  Σ_layers (A, B) + one layer's products
                  and  Σ_layers (Q_A, Q_B, Λ) + one layer's rotated a, g;

or between the passes Σ_layers (A, B) + one decomposition in float64. What a batch takes of memory
besides is `SLACK` of its activations, or what a `Calibration` has measured.
"""

import math
from collections.abc import Collection, Iterable

from torch import nn

from msif.core.coverage import coverage
from msif.core.ekfac import block_shape, factor_bytes
from msif.core.layers import Layer, Tracked
from msif.core.models import text_config
from msif.core.products import WORKSPACE
from msif.core.resources import available_memory
from msif.core.sums import packed
from msif.scale.meta import MetaPass, one_pass
from msif.scale.plans import Calibration, FitPlan, Partition, ScorePlan
from msif.scale.sizes import human, parse_bytes

EIGH_COPIES = 6  # float64 matrices held at once: M, symmetrised, vectors, LAPACK's 2, 1 in and out
SLACK = 1.2  # what allocators hold for tensors that come and go, over what is in use at once
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
EIGH_FLOPS = 9  # × d³: tridiagonalisation, divide and conquer, back-transformation


def plan_fit(
    tracked: Tracked,
    lengths: Iterable[int],
    *,
    batch_size: int = 32,
    draws: int = 1,
    memory: int | str | None = None,
    calibration: Calibration | None = None,
) -> FitPlan:
    """The `FitPlan` of fitting the tracked layers on sequences of these lengths (tokens) within
    `memory` (bytes, "16GiB", or what is free).

    The layers go, in the model's order, into as few partitions as the memory allows. calibration:
    of these layers, sequences and draws (`calibration.of_fit`), gives memory and time. Raises
    MemoryError below `least_memory`, naming it and the layer that needs it, ValueError for no
    lengths."""
    budget = available_memory() if memory is None else parse_bytes(memory)
    lengths = list(lengths)
    needs = Needs(tracked, lengths, batch_size, calibration)
    if budget is not None and budget < needs.least:
        raise MemoryError(needs.refusal(budget))
    parts: list[Partition] = []
    for layer in tracked.layers:
        grown = needs.partition([*parts[-1].layers, layer]) if parts else None
        if grown and (budget is None or needs.model + grown.bytes <= budget):
            parts[-1] = grown
        else:
            parts.append(needs.partition([layer]))
    tokens = sum(lengths)
    forward = needs.forward(tokens)
    return FitPlan(
        parameters=sum(p.numel() for p in tracked.model.parameters()),
        model=needs.model,
        partitions=tuple(parts),
        factors=sum(map(factor_bytes, tracked.layers)),
        tokens=tokens,
        draws=draws,
        forward=forward,
        model_flops=sum(2 * forward * (1 + draws * _above(tracked.layers, p)) for p in parts),
        product_flops=fit_products(tracked.layers, lengths, draws),
        eigh_flops=sum(_eigh(x) for x in tracked.layers),
        coverage=str(coverage(tracked)),
        how=needs.found.how,
        calibration=calibration,
    )


def least_memory(tracked: Tracked, lengths: Iterable[int], *, batch_size: int = 32) -> int:
    """The smallest `memory`, in bytes, that `plan_fit` accepts: of the model and of the layer that
    needs the most alone. ValueError for no lengths."""
    return Needs(tracked, list(lengths), batch_size).least


class Needs:
    """What a fit of these layers takes in memory, by partition; n sequences of s tokens are its
    largest batch."""

    def __init__(
        self,
        tracked: Tracked,
        lengths: list[int],
        batch_size: int,
        calibration: Calibration | None = None,
    ) -> None:
        if not lengths:
            raise ValueError("there are no sequences to plan for; expected at least one length")
        self.tracked = tracked
        self.n, self.s = min(batch_size, len(lengths)), max(lengths)
        self.model = model_bytes(tracked.model)
        padded = len(set(sorted(lengths)[-self.n :])) > 1
        self.found = one_pass(tracked, self.n, self.s, padded)
        self.measured = calibration and calibration.memory
        self.largest = max((self.partition([x]) for x in tracked.layers), key=lambda p: p.bytes)
        self.least = self.model + self.largest.bytes

    def batch(self, chosen: Collection[Layer]) -> int:
        """Bytes of the activations, inputs and logits of the largest batch, in a fit of these
        layers."""
        inputs = inputs_bytes(self.tracked.only(chosen), self.n * self.s, self.found)
        return self.found.kept_by(chosen) + self.found.logits + inputs

    def partition(self, chosen: list[Layer]) -> Partition:
        """The `Partition` of these layers."""
        moments, eigh, first, factors, second = _sums(chosen, self.n, self.s)
        slack = self.measured or SLACK
        if self.measured:  # what was measured has the workspace in it
            first = second = 0
        return Partition(
            layers=tuple(chosen),
            activations=int(slack * self.batch(chosen)),
            covariances=moments + int(SLACK * first),
            eigenvalues=factors + int(SLACK * second),
            decompositions=moments + eigh,
            sums=moments,
            factors=factors,
        )

    def forward(self, tokens: int) -> float:
        """FLOP of one forward pass over so many tokens."""
        return self.found.flops * tokens / (self.n * self.s)

    def refusal(self, budget: int) -> str:
        """What to say of a budget below the least."""
        return (
            f"{self.largest.layers[0].name} alone needs {human(self.least)} "
            f"({human(self.model)} for the model, {human(self.largest.activations)} "
            f"for activations of {self.n} × {self.s} tokens), the budget is {human(budget)}: "
            f"give more memory, {self.least} bytes at least, a smaller batch_size, "
            f"shorter sequences or a model in bfloat16"
        )


def plan_score(
    tracked: Tracked,
    lengths: list[int],
    queries: int,
    *,
    batch_size: int = 32,
    calibration: Calibration | None = None,
) -> ScorePlan:
    """The `ScorePlan` of `influence.score` on documents of these lengths (tokens) for that many
    queries, in float32. calibration: of these layers, documents and queries
    (`calibration.of_scores`)."""
    needs, tokens = Needs(tracked, list(lengths), batch_size), sum(lengths)
    n, s, weights = needs.n, needs.s, tracked.weights

    def gradient(layer):
        """Bytes of a batch's D, a and g."""
        sides = layer.in_features + layer.out_features
        return 4 * n * (layer.inputs * layer.out_features + s * sides)

    held = needs.batch(tracked.layers)
    if calibration and calibration.memory:
        batch = int(calibration.memory * held)
    else:
        batch = int(SLACK * (held + max(map(gradient, tracked.layers))))
    vectors = 4 * queries * weights
    forward = needs.forward(tokens)
    return ScorePlan(
        documents=len(lengths),
        queries=queries,
        peak=needs.model + batch + vectors,
        vectors=vectors,
        disk=len(lengths) * (4 * queries + 12),
        forward=forward,
        model_flops=2 * forward,
        product_flops=score_products(weights, lengths, queries),
        calibration=calibration,
    )


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, shared ones once, and buffers."""
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))


def inputs_bytes(tracked: Tracked, tokens: int, found: MetaPass) -> int:
    """Bytes of the a of every layer of a partition, which wait, in the model's dtype, for their
    gradients; what several layers read, or autograd keeps, counts once where the pass knows it."""
    chosen: dict[str, list[int]] = {}
    config = text_config(tracked.model)
    per_token = next((n for x in _PER_TOKEN if (n := getattr(config, x, None))), math.inf)
    for x in tracked.layers:  # a token reads a few of the experts of a parameter
        if x.name not in found.inputs:
            chosen.setdefault(x.parameter, []).append(x.in_features)
    width = sum(x[0] * min(len(x), per_token) for x in chosen.values())
    size = next(tracked.model.parameters()).element_size()
    return found.waiting(tracked.layers) + int(width * tokens * size)


def _sums(layers, n, s):
    """Bytes: sums of the covariance pass, a decomposition beside them, workspace of that pass;
    factors, workspace of the eigenvalue pass."""
    shapes = [(x.inputs, x.out_features, *block_shape(x)) for x in layers]
    rows = max(4 * n * s * (i + o) for i, o, *_ in shapes)  # one layer's a and g in float32
    moments = 8 * sum(packed(i) + blocks * packed(r) for i, _, blocks, r in shapes)
    product = max(4 * (i * i + blocks * r * r) for i, _, blocks, r in shapes)  # of one batch
    eigh = max(
        8 * EIGH_COPIES * max(i, r) ** 2 + 8 * (i * i + blocks * r * r)
        for i, _, blocks, r in shapes
    )
    chunk = max(4 * min(n * o * i, max(WORKSPACE, o * i)) for i, o, *_ in shapes)
    return moments, eigh, rows + product, sum(map(factor_bytes, layers)), 2 * rows + chunk


def _above(layers, partition):
    """Share of a whole activation-gradient pass that reaches down to the partition's first
    layer."""
    return 1 - layers.index(partition.layers[0]) / len(layers)


def fit_products(layers: Collection[Layer], lengths: list[int], draws: int) -> float:
    """FLOP of what a fit does with the inputs and gradients of these layers."""
    return sum(_products(x, lengths, draws) for x in layers)


def preferences_products(layers: Collection[Layer], lengths: list[int]) -> float:
    """The same of a stage of preferences, for pairs of these lengths: beside the squares, gradients
    are rotated at the stage's start and at its end."""
    return sum(_products(x, lengths, 1) + 2 * _squares(x, lengths) for x in layers)


def score_products(weights: int, lengths: list[int], queries: int) -> float:
    """FLOP of forming the gradients of documents and of their products with the queries'
    vectors."""
    return 2.0 * weights * (sum(lengths) + len(lengths) * queries)


def _products(layer, lengths, draws):
    """FLOP of one layer's covariances (half of a product, as they are symmetric) and rotated
    squares over the data."""
    i, o, (_, r) = layer.inputs, layer.out_features, block_shape(layer)
    return sum(lengths) * (i * i + draws * r * o) + draws * _squares(layer, lengths)


def _squares(layer, lengths):
    """FLOP of one layer's rotated gradients over the data."""
    i, o, (_, r) = layer.inputs, layer.out_features, block_shape(layer)
    return 2 * sum(min(s, o) * i * i + min(s, i) * r * o + s * o * i for s in lengths)


def _eigh(layer):
    i, (blocks, r) = layer.inputs, block_shape(layer)
    return EIGH_FLOPS * (i**3 + blocks * r**3)
