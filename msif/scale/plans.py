"""What a plan says, and what a few batches showed of a machine: plain numbers, readable when
printed."""

from dataclasses import dataclass

from msif.core.layers import Layer
from msif.scale.sizes import duration, human
from msif.scale.solving import SolvePlan

_HOW = {
    "meta": "",
    "measured": "\n  activations and arithmetic of a pass measured on a short sequence",
    "bound": "\n  activations and arithmetic of a pass bounded by the sizes of the layers",
}


@dataclass(frozen=True)
class Calibration:
    """What a few batches of the user's own took on this machine (`msif.scale.calibration`).

    memory: bytes that a batch took over those that its activations, inputs and logits come to;
    None where the system does not say. model, products, eigh: floating-point operations per second
    of the passes through the model, of what is done with inputs and gradients (None: no
    decompositions) and of the float64 decompositions. seconds: that it took; batches: run."""

    memory: float | None
    model: float
    products: float
    eigh: float | None
    seconds: float
    batches: int

    def __str__(self) -> str:
        memory = "" if self.memory is None else " and memory"
        return f"time{memory} by {self.batches} batches, which took {duration(self.seconds)}"


@dataclass(frozen=True)
class Partition:
    """Layers fitted together.

    Bytes: activations (with inputs and logits); covariances and eigenvalues (sums, bases and
    workspace of the passes); decompositions (sums and workspace); sums of the first pass, on disk;
    factors."""

    layers: tuple[Layer, ...]
    activations: int
    covariances: int
    eigenvalues: int
    decompositions: int
    sums: int
    factors: int

    @property
    def bytes(self) -> int:
        """The most that it holds at once, besides the model."""
        return max(self.activations + max(self.covariances, self.eigenvalues), self.decompositions)


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
    calibration: Calibration | None = None
    held: int = 0  # bytes that preferences hold besides: their start, and a batch at both models
    adapters: SolvePlan | None = None  # of a stage of adapters

    @property
    def peak(self) -> int:
        """Bytes of memory, the model included."""
        return self.model + self.held + max(p.bytes for p in self.partitions)

    @property
    def disk(self) -> int:
        """Factors twice (work and result); or those of the partitions so far, with the bases and
        sums of the last of them."""
        done, most = 0, 2 * self.factors
        for p in self.partitions:
            done += p.factors
            most = max(most, done + p.factors + p.sums)
        return most

    @property
    def passes(self) -> float:
        """In units of a plain forward + backward pass over the data (three forward passes), without
        decompositions."""
        return (self.model_flops + self.product_flops) / (3 * self.forward)

    @property
    def time(self) -> float | None:
        """Seconds of the fit here, by the calibration; None without one."""
        known = self.calibration
        if known is None or known.eigh is None:
            return None
        return self.seconds(known.model, known.products, known.eigh)

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
            f"{_time(self)}" + (f"\n{self.adapters}" if self.adapters else "")
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
    calibration: Calibration | None = None

    @property
    def time(self) -> float | None:
        """Seconds of the pass here, by the calibration; None without one."""
        known = self.calibration
        return self.seconds(known.model, known.products) if known else None

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
            f"  arithmetic {self.passes:.2f} forward + backward passes{_time(self)}"
        )


def _time(plan):
    """The line of the calibration; "" without one."""
    if plan.time is None:
        return ""
    return f"\n  about {duration(plan.time)} on this machine: {plan.calibration}"
