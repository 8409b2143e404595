"""Adapters (LoRA): what they add to a layer's weight."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """What a layer's adapter adds to its weight: scale · B A.

    A: (r, i), without the bias. B: (o, r). scale: s.
    """

    A: Tensor
    B: Tensor
    scale: float

    def __post_init__(self):
        if self.A.dim() != 2 or self.B.dim() != 2 or len(self.A) != self.B.shape[1]:
            raise ValueError(
                f"an adapter of A {tuple(self.A.shape)} and B {tuple(self.B.shape)}: expected "
                f"(r, i) and (o, r)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the layer."""
        return len(self.B), self.A.shape[1]
