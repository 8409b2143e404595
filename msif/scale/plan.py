"""What a fit needs, before it starts: partitions of the layers, memory, disk, arithmetic and time.

Sizes come from the shapes and from one forward pass on the meta device, or where the model does not
run there from what short passes keep (`msif.scale.meta`). So a plan for billions of parameters
takes seconds and no weights. What a partition takes depends on its
own layers alone, not on which others are tracked. A fit of one partition holds, for a batch of
t = n·s positions,

    the model; the activations that the backward pass to the partition's first layer needs;
    the partition's inputs a; logits, with what the loss makes of them;
    and the larger of  Σ_layers (A, B) + one decomposition in float64
                  and  Σ_layers (Q_A, Q_B, Λ) + one layer's rotated a, g.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from msif.core.coverage import coverage
from msif.core.ekfac import block_shape, factor_bytes
from msif.core.layers import Layer, Tracked
from msif.core.models import text_config
from msif.core.products import WORKSPACE
from msif.core.resources import available_memory
from msif.scale.meta import one_pass
from msif.scale.sizes import human, parse_bytes
from msif.scale.solving import SolvePlan
from msif.scale.sums import packed

EIGH_COPIES = 6  # float64 matrices held at once: M, symmetrised, vectors, LAPACK's 2, 1 in and out
SLACK = 1.2  # what allocators hold for tensors that come and go, over what is in use at once
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
_HOW = {
    "meta": "",
    "measured": "\n  activations and arithmetic of a pass measured on a short sequence",
    "bound": "\n  activations and arithmetic of a pass bounded by the sizes of the layers",
}
EIGH_FLOPS = 9  # × d³: tridiagonalisation, divide and conquer, back-transformation


@dataclass(frozen=True)
class Partition:
    """Layers fitted together.

    Bytes: activations (with inputs and logits), covariances and eigenvalues (sums and
    workspace)."""

    layers: tuple[Layer, ...]
    activations: int
    covariances: int
    eigenvalues: int

    @property
    def bytes(self) -> int:
        """The most that it holds at once, besides the model."""
        return self.activations + max(self.covariances, self.eigenvalues)


@dataclass(frozen=True)
class FitPlan:
    """What a fit takes: sizes in bytes, arithmetic in floating-point operations, a multiplication
    with its addition counting as 2."""

    parameters: int
    model: int
    partitions: tuple[Partition, ...]
    factors: int
    tokens: int
    draws: int
    forward: float  # one forward pass over the tokens
    model_flops: float  # forward and activation-gradient passes, all partitions
    product_flops: float  # covariances and rotated squares
    eigh_flops: float
    coverage: str  # how much of the model is tracked
    how: str  # how a pass was estimated: see `msif.scale.meta`
    held: int = 0  # bytes that preferences hold besides: their start, and a batch at both models
    adapters: SolvePlan | None = None  # of a stage of adapters

    @property
    def peak(self) -> int:
        """Bytes of memory, the model included."""
        return self.model + self.held + max(p.bytes for p in self.partitions)

    @property
    def disk(self) -> int:
        """Factors twice (work and result), and the sums of one partition for as long as it is
        fitted."""
        return 2 * self.factors + max(p.covariances for p in self.partitions)

    @property
    def passes(self) -> float:
        """In units of a plain forward + backward pass over the data (three forward passes), without
        decompositions."""
        return (self.model_flops + self.product_flops) / (3 * self.forward)

    def seconds(self, model_rate: float, product_rate: float, eigh_rate: float) -> float:
        """Predicted time at these rates, in operations per second."""
        return (
            self.model_flops / model_rate
            + self.product_flops / product_rate
            + self.eigh_flops / eigh_rate
        )

    def __str__(self) -> str:
        layers = sum(len(p.layers) for p in self.partitions)
        draws = f"{self.draws} draw{'s' * (self.draws > 1)}"
        return (
            f"plan: {layers} layers of a model of {self.parameters:,} parameters "
            f"({human(self.model)}), {self.tokens:,} tokens, {draws}\n"
            f"  {self.coverage}\n"
            f"  partitions {len(self.partitions)}: two passes over the data each; "
            f"peak memory {human(self.peak)}, model included\n"
            f"  disk {human(self.disk)} while it runs, {human(self.factors)} for the factors\n"
            f"  arithmetic {self.passes:.2f} forward + backward passes, and "
            f"{self.eigh_flops / 1e9:,.0f} GFLOP of float64 decompositions{_HOW[self.how]}"
            + (f"\n{self.adapters}" if self.adapters else "")
        )


def plan_fit(
    tracked: Tracked,
    lengths: Iterable[int],
    *,
    batch_size: int = 32,
    draws: int = 1,
    memory: int | str | None = None,
) -> FitPlan:
    """The `FitPlan` of fitting the tracked layers on sequences of these lengths (tokens) within
    `memory` (bytes, "16GiB", or what is free).

    The layers go, in the model's order, into as few partitions as the memory allows. Raises
    MemoryError below `least_memory`, naming it and the layer that needs it, ValueError for no
    lengths."""
    budget = available_memory() if memory is None else parse_bytes(memory)
    lengths = list(lengths)
    needs = _Needs(tracked, lengths, batch_size)
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
    forward = needs.found.flops * tokens / (needs.n * needs.s)
    return FitPlan(
        parameters=sum(p.numel() for p in tracked.model.parameters()),
        model=needs.model,
        partitions=tuple(parts),
        factors=sum(map(factor_bytes, tracked.layers)),
        tokens=tokens,
        draws=draws,
        forward=forward,
        model_flops=sum(2 * forward * (1 + draws * _above(tracked.layers, p)) for p in parts),
        product_flops=sum(_products(x, lengths, draws) for x in tracked.layers),
        eigh_flops=sum(_eigh(x) for x in tracked.layers),
        coverage=str(coverage(tracked)),
        how=needs.found.how,
    )


def least_memory(tracked: Tracked, lengths: Iterable[int], *, batch_size: int = 32) -> int:
    """The smallest `memory`, in bytes, that `plan_fit` accepts: of the model and of the layer that
    needs the most alone. ValueError for no lengths."""
    return _Needs(tracked, list(lengths), batch_size).least


class _Needs:
    """What a fit of these layers takes in memory, by partition; n sequences of s tokens are its
    largest batch."""

    def __init__(self, tracked, lengths, batch_size):
        if not lengths:
            raise ValueError("there are no sequences to plan for; expected at least one length")
        self.tracked = tracked
        self.n, self.s = min(batch_size, len(lengths)), max(lengths)
        self.model = model_bytes(tracked.model)
        self.found = one_pass(tracked, self.n, self.s)
        self.largest = max((self.partition([x]) for x in tracked.layers), key=lambda p: p.bytes)
        self.least = self.model + self.largest.bytes

    def partition(self, chosen):
        """The `Partition` of these layers."""
        inputs = _inputs(self.tracked.only(chosen), self.n * self.s)
        activations = self.found.kept_by(chosen) + self.found.logits + inputs
        return Partition(tuple(chosen), int(SLACK * activations), *_sums(chosen, self.n, self.s))

    def refusal(self, budget):
        """What to say of a budget below the least."""
        return (
            f"{self.largest.layers[0].name} alone needs {human(self.least)} "
            f"({human(self.model)} for the model, {human(self.largest.activations)} "
            f"for activations of {self.n} × {self.s} tokens), the budget is {human(budget)}: "
            f"give more memory, {self.least} bytes at least, a smaller batch_size, "
            f"shorter sequences or a model in bfloat16"
        )


@dataclass(frozen=True)
class ScorePlan:
    """Scoring documents for some queries: sizes in bytes, arithmetic in FLOP over all documents."""

    documents: int
    queries: int
    peak: int
    vectors: int  # w, held throughout
    disk: int  # of float32 scores, norms and indices
    forward: float
    model_flops: float
    product_flops: float

    @property
    def passes(self) -> float:
        """In units of a plain forward + backward pass over the documents."""
        return (self.model_flops + self.product_flops) / (3 * self.forward)

    def seconds(self, model_rate: float, product_rate: float) -> float:
        """Predicted time at these rates, in operations per second."""
        return self.model_flops / model_rate + self.product_flops / product_rate

    def __str__(self) -> str:
        return (
            f"plan: {self.documents:,} documents for {self.queries} queries\n"
            f"  peak memory {human(self.peak)}, {human(self.vectors)} of it "
            f"for the queries' vectors; disk {human(self.disk)}\n"
            f"  arithmetic {self.passes:.2f} forward + backward passes"
        )


def plan_score(
    tracked: Tracked, lengths: list[int], queries: int, *, batch_size: int = 32
) -> ScorePlan:
    """The `ScorePlan` of `influence.score` on documents of these lengths (tokens) for that many
    queries, in float32."""
    n, s, tokens = min(batch_size, len(lengths)), max(lengths), sum(lengths)
    found = one_pass(tracked, n, s)
    weights = tracked.weights

    def gradient(layer):
        """Bytes of a batch's D, a and g."""
        sides = layer.in_features + layer.out_features
        return 4 * n * (layer.inputs * layer.out_features + s * sides)

    D = max(map(gradient, tracked.layers))
    held = found.kept_by(tracked.layers) + found.logits + _inputs(tracked, n * s) + D
    vectors, forward = 4 * queries * weights, found.flops * tokens / (n * s)
    return ScorePlan(
        documents=len(lengths),
        queries=queries,
        peak=model_bytes(tracked.model) + int(SLACK * held) + vectors,
        vectors=vectors,
        disk=len(lengths) * (4 * queries + 12),
        forward=forward,
        model_flops=2 * forward,
        product_flops=2.0 * weights * (tokens + len(lengths) * queries),
    )


def model_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, shared ones once, and buffers."""
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))


def _inputs(tracked, tokens):
    """Bytes of the a of every layer of a partition, which wait, in the model's dtype, for their
    gradients."""
    chosen, config = {}, text_config(tracked.model)
    per_token = next((n for x in _PER_TOKEN if (n := getattr(config, x, None))), math.inf)
    for x in tracked.layers:  # a token reads a few of the experts of a parameter
        chosen.setdefault(x.parameter, []).append(x.in_features)
    width = sum(x[0] * min(len(x), per_token) for x in chosen.values())
    return width * tokens * next(tracked.model.parameters()).element_size()


def _sums(layers, n, s):
    """Bytes of sums and workspace in the covariance pass (with the decompositions after it) and in
    the eigenvalue pass."""
    shapes = [(x.inputs, x.out_features, *block_shape(x)) for x in layers]
    rows = max(4 * n * s * (i + o) for i, o, *_ in shapes)  # one layer's a and g in float32
    moments = 8 * sum(packed(i) + blocks * packed(r) for i, _, blocks, r in shapes)
    product = max(4 * (i * i + blocks * r * r) for i, _, blocks, r in shapes)  # of one batch
    eigh = max(
        8 * EIGH_COPIES * max(i, r) ** 2 + 8 * (i * i + blocks * r * r)
        for i, _, blocks, r in shapes
    )
    chunk = max(4 * 3 * min(n * o * i, max(WORKSPACE, o * i)) for i, o, *_ in shapes)
    covariances = moments + max(int(SLACK * (rows + product)), eigh)
    eigenvalues = sum(map(factor_bytes, layers)) + int(SLACK * (2 * rows + chunk))
    return covariances, eigenvalues


def _above(layers, partition):
    """Share of a whole activation-gradient pass that reaches down to the partition's first
    layer."""
    return 1 - layers.index(partition.layers[0]) / len(layers)


def _products(layer, lengths, draws):
    """FLOP of one layer's covariances (half of a product, as they are symmetric) and rotated
    squares over the data."""
    i, o, (_, r) = layer.inputs, layer.out_features, block_shape(layer)
    squares = sum(min(s, o) * i * i + min(s, i) * r * o + s * o * i for s in lengths)
    return sum(lengths) * (i * i + draws * r * o) + 2 * draws * squares


def _eigh(layer):
    i, (blocks, r) = layer.inputs, block_shape(layer)
    return EIGH_FLOPS * (i**3 + blocks * r**3)
