"""Dense curvature: an explicit symmetric matrix over the tracked layers.

For tests and toys. The matrix acts on the layers' flattened (out, in) gradients,
concatenated in the order of `layers`.
"""

from dataclasses import dataclass
from math import prod

import torch

from msif.core.products import unflatten


@dataclass(frozen=True)
class Dense:
    """The curvature H of a stage as a matrix.

    matrix: (P, P), symmetric. layers: {layer name: (out, in)} in the order of its rows,
    P = Σ out·in.
    """

    matrix: torch.Tensor
    layers: dict

    def apply(self, f, v, new=(), f_new=None):
        """f(H) v for f(eigenvalues, their mean); v: {layer: (n, out, in)}.

        With layers φ in `new`, on which f must not act (they carry no proximal term), φ is
        eliminated in closed form, with H_φφ⁻¹ := f_new(H_φφ):

            S = H_θθ − H_θφ H_φφ⁻¹ H_φθ,
            x_θ = f(S)(v_θ − H_θφ H_φφ⁻¹ v_φ),   x_φ = H_φφ⁻¹(v_φ − H_φθ x_θ).
        """
        x, at_new = self._flatten(v), self._mask(new)
        if not at_new.any():
            return self._unflatten(x @ spectral(f, self.matrix), v)
        theta, phi = x[:, ~at_new], x[:, at_new]
        H, H_x = self.matrix[~at_new][:, ~at_new], self.matrix[at_new][:, ~at_new]  # (θ, θ), (φ, θ)
        inverse = spectral(f_new, self.matrix[at_new][:, at_new])
        x[:, ~at_new] = (theta - phi @ inverse @ H_x) @ spectral(f, H - H_x.mT @ inverse @ H_x)
        x[:, at_new] = (phi - x[:, ~at_new] @ H_x.mT) @ inverse
        return self._unflatten(x, v)

    def _flatten(self, v):
        return torch.cat([v[name].flatten(1).to(self.matrix.dtype) for name in self.layers], 1)

    def _unflatten(self, x, like):
        parts = x.split([prod(shape) for shape in self.layers.values()], 1)
        return {
            name: part.reshape_as(like[name]).to(like[name].dtype)
            for name, part in zip(self.layers, parts)
        }

    def _mask(self, new):
        return torch.cat(
            [torch.full((prod(shape),), name in new) for name, shape in self.layers.items()]
        )


@dataclass(frozen=True)
class DenseCross:
    """X of a stage (`core.stages.Cross`) as a matrix (P, P), the rows as in `Dense`."""

    matrix: torch.Tensor
    layers: dict

    def transposed(self, v):
        """Xᵀ v; v: {layer: (n, out, in)}."""
        x = torch.cat([v[name].flatten(1).to(self.matrix.dtype) for name in self.layers], 1)
        return unflatten(x @ self.matrix, {name: v[name] for name in self.layers})


def spectral(f, matrix):
    """f(M) = U diag(f(λ, λ̄)) Uᵀ for a symmetric M."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return vectors * f(values, values.mean()) @ vectors.mT
