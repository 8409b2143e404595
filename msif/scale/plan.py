"""What a fit needs, before it starts: partitions of the layers, memory, disk, arithmetic and time.

Sizes come from the shapes and from one forward pass of a copy of the model on the meta device,
which computes nothing: the tensors that autograd keeps there are those that it will keep. So a plan
for billions of parameters takes seconds and no weights. A fit of one partition holds, for a batch
of t = n·s positions,

    the model; the activations that the backward pass to the partition's first layer needs;
    the partition's inputs a; logits, with what the loss makes of them;
    and the larger of  Σ_layers (A, B) + one decomposition in float64
                  and  Σ_layers (Q_A, Q_B, Λ) + one layer's rotated a, g.
"""

import copy
import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msif.core.ekfac import block_shape, factor_bytes
from msif.core.layers import Layer, Tracked
from msif.core.products import WORKSPACE
from msif.core.resources import available_memory

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
LOGIT_COPIES = 4  # float32 tensors of the logits' size that a loss holds at once, beside the logits
# float64 matrices that a decomposition holds at once: M, symmetrised, vectors, LAPACK's 2 and 1 in
# and out
EIGH_COPIES = 6
SLACK = 1.2  # what allocators hold for tensors that come and go, over what is in use at once
EIGH_FLOPS = 9  # × d³: tridiagonalisation, divide and conquer, back-transformation


def parse_bytes(size: str | float) -> int:
    """Bytes of "16GiB", "500 MB" or a number.

    Raises ValueError for anything else, and for nothing at all."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if not found or found[2] not in UNITS or not (number := float(found[1]) * UNITS[found[2]]) > 0:
        raise ValueError(
            f"memory is {size!r}: expected a size such as '16GiB', '500MB' or a number of bytes"
        )
    return int(number)


def human(size: float) -> str:
    """Bytes in a readable unit: "512 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


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

    @property
    def peak(self) -> int:
        """Bytes of memory, the model included."""
        return self.model + max(p.bytes for p in self.partitions)

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
            f"  partitions {len(self.partitions)}: two passes over the data each; "
            f"peak memory {human(self.peak)}, model included\n"
            f"  disk {human(self.disk)} while it runs, {human(self.factors)} for the factors\n"
            f"  arithmetic {self.passes:.2f} forward + backward passes, and "
            f"{self.eigh_flops / 1e9:,.0f} GFLOP of float64 decompositions"
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
    MemoryError, naming the layer and both sizes, if even one layer alone is too much."""
    budget = available_memory() if memory is None else parse_bytes(memory)
    lengths = sorted(lengths, reverse=True)
    n, s, tokens = min(batch_size, len(lengths)), lengths[0], sum(lengths)
    held = model_bytes(tracked.model)
    kept, logits, flops = _meta_pass(tracked, n, s)

    def partition(chosen: list[Layer]) -> Partition:
        activations = kept[chosen[0].name] + logits + _inputs(tracked.only(chosen), n * s)
        return Partition(tuple(chosen), int(SLACK * activations), *_sums(chosen, n, s))

    parts: list[Partition] = []
    for layer in tracked.layers:
        grown = partition([*parts[-1].layers, layer]) if parts else None
        if grown and (budget is None or held + grown.bytes <= budget):
            parts[-1] = grown
            continue
        parts.append(partition([layer]))
        if budget is not None and held + parts[-1].bytes > budget:
            raise MemoryError(
                f"{layer.name} alone needs {human(held + parts[-1].bytes)} "
                f"({human(held)} for the model, {human(parts[-1].activations)} "
                f"for activations of {n} × {s} tokens), the budget is {human(budget)}: "
                f"give more memory, a smaller batch_size, shorter sequences or a model in bfloat16"
            )
    forward = flops * tokens / (n * s)
    return FitPlan(
        parameters=sum(p.numel() for p in tracked.model.parameters()),
        model=held,
        partitions=tuple(parts),
        factors=sum(map(factor_bytes, tracked.layers)),
        tokens=tokens,
        draws=draws,
        forward=forward,
        model_flops=sum(2 * forward * (1 + draws * _above(tracked.layers, p)) for p in parts),
        product_flops=sum(_products(x, lengths, draws) for x in tracked.layers),
        eigh_flops=sum(_eigh(x) for x in tracked.layers),
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
    kept, logits, flops = _meta_pass(tracked, n, s)
    weights = tracked.weights

    def gradient(layer):
        """Bytes of a batch's D, a and g."""
        sides = layer.in_features + layer.out_features
        return 4 * n * (layer.inputs * layer.out_features + s * sides)

    D = max(map(gradient, tracked.layers))
    held = kept[tracked.layers[0].name] + logits + _inputs(tracked, n * s) + D
    vectors, forward = 4 * queries * weights, flops * tokens / (n * s)
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


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without its numbers."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in model.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    copied = copy.deepcopy(model, memo).eval()
    # Else transformers looks into the positions for packed sequences: there are none to see.
    config = getattr(copied, "config", None)
    if config is not None:
        config.use_cache = True
    return copied


def _meta_pass(tracked, n, s):
    """({layer: bytes that autograd keeps from its output on}, bytes of the logits and what the loss
    holds, FLOP of one forward)."""
    model, kept, at = on_meta(tracked.model), _Kept(), {}
    modules = dict(model.named_modules())

    def start(name):
        def hook(module, args, output):
            at[name] = kept.bytes
            return output if output.requires_grad else output.requires_grad_()

        return hook

    handles = [modules[x.name].register_forward_hook(start(x.name)) for x in tracked.layers]
    try:
        with kept.watching(model), FlopCounterMode(display=False) as flops, torch.enable_grad():
            logits = model(input_ids=torch.zeros(n, s, dtype=torch.long, device="meta")).logits
    finally:
        for handle in handles:
            handle.remove()
    size = logits.numel() * (2 * logits.element_size() + 4 * LOGIT_COPIES)
    return {name: kept.bytes - before for name, before in at.items()}, size, flops.get_total_flops()


class _Kept:
    """Counts the bytes of tensors that autograd saves, each storage once, parameters not at all."""

    def __init__(self):
        self.bytes, self.seen = 0, set()

    @contextmanager
    def watching(self, model):
        self.seen = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
            yield

    def _pack(self, x):
        storage = x.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return x


def _inputs(tracked, tokens):
    """Bytes of the a of every layer of a partition, which wait, in the model's dtype, for their
    gradients."""
    width = sum(x.in_features for x in tracked.layers)
    return width * tokens * next(tracked.model.parameters()).element_size()


def _sums(layers, n, s):
    """Bytes of sums and workspace in the covariance pass (with the decompositions after it) and in
    the eigenvalue pass."""
    shapes = [(x.inputs, x.out_features, *block_shape(x)) for x in layers]
    rows = max(4 * n * s * (i + o) for i, o, *_ in shapes)  # one layer's a and g in float32
    moments = 4 * sum(i * i + blocks * r * r for i, _, blocks, r in shapes)
    eigh = max(
        8 * EIGH_COPIES * max(i, r) ** 2 + 8 * (i * i + blocks * r * r)
        for i, _, blocks, r in shapes
    )
    chunk = max(4 * 3 * min(n * o * i, max(WORKSPACE, o * i)) for i, o, *_ in shapes)
    covariances = moments + max(int(SLACK * rows), eigh)
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
