"""What stages of adapters and of preferences take besides the fit of their factors."""

from collections.abc import Mapping
from dataclasses import dataclass

from msif.core.adapters import Adapter
from msif.core.layers import Layer
from msif.scale.sizes import human

DENSE = 1024  # unknowns that are solved for exactly, as in `curvature.tangent`
ITERATIONS = 50  # products that conjugate gradients take, about: 16 to 97 were measured
EIGH_FLOPS = 9  # × n³


@dataclass(frozen=True)
class SolvePlan:
    """Preconditioning queries for a stage of adapters, the layers one after the other: memory in
    bytes, arithmetic in FLOP. mean: bytes of D̄, held or on disk with the factors."""

    layers: int
    exactly: int
    queries: int
    peak: int
    mean: int
    flops: float

    def __str__(self) -> str:
        return (
            f"adapters: {self.layers} layers, {self.exactly} of them solved exactly\n"
            f"  one more forward + backward pass over the rows, {human(self.mean)} for its mean "
            f"gradient\n"
            f"  for {self.queries} questions {human(self.peak)} of memory besides their vectors, "
            f"and {self.flops / 1e9:,.1f} GFLOP"
        )


def plan_solve(layers: list[Layer], adapters: Mapping[str, Adapter], queries: int) -> SolvePlan:
    """The `SolvePlan` of that many queries. All in float64."""
    peak, flops, mean, exactly = 0, 0.0, 0, 0
    for x in layers:
        if x.name not in adapters:
            continue
        o, i, r = x.out_features, x.inputs, len(adapters[x.name].A)
        unknowns = r * (o + i)
        rotation = 4.0 * queries * o * i * (o + i) * 2  # into the eigenbasis and back, twice
        product = 8.0 * o * i * r  # P and Pᵀ of one vector
        mean += 4 * o * i
        if unknowns <= DENSE:
            exactly += 1
            held = 4 * unknowns**2
            flops += rotation + unknowns * product + EIGH_FLOPS * unknowns**3
        else:
            held = unknowns * (r + 8 * queries)
            flops += rotation + ITERATIONS * queries * product
        peak = max(peak, 8 * (held + 3 * queries * o * i + 2 * o * i))
    count = sum(x.name in adapters for x in layers)
    return SolvePlan(count, exactly, queries, peak, mean, flops)


def preferences_bytes(layers: list[Layer], batch_size: int, longest: int) -> int:
    """Bytes that a pass at both models of a stage of preferences holds between them: inputs and
    gradients in float32 of all layers, for a batch of pairs of rows of so many tokens."""
    width = sum(x.in_features + x.out_features for x in layers)
    return 4 * 2 * batch_size * longest * width
