"""EK-FAC in the metric of Adam.

Adam's steps are −η P g with P = diag(v)^(−1/2), v the mean square of a step's gradient. With
v ≈ r cᵀ for each layer (rank one, as Adafactor has it: Shazeer and Stern 2018, arXiv 1804.04235),
P^(1/2) scales rows by r^(−1/4) and columns by c^(−1/4). EK-FAC of the scaled weights is then EK-FAC
with scaled bases, Q_A := diag(c^(−1/4)) Q_A′ and Q_B := diag(r^(−1/4)) Q_B′ (Q′: eigenbases of the
scaled A and B), whose `apply(f)` is P^(1/2) f(P^(1/2) H P^(1/2)) P^(1/2): an inverse with damping d
is (H + d P⁻¹)⁻¹. P is normalised to a mean of about 1 in each layer.
"""

from dataclasses import replace

from msif.core.capture import passes
from msif.core.ekfac import corrected_eigenvalues, covariances, eigenbases
from msif.core.kronecker import EKFAC
from msif.core.objectives import fisher_losses, loss
from msif.core.products import sequence_gradient


def fit(tracked, sequences, *, labels="gaussian", samples=2, seed=0, batch_size=64):
    """As `ekfac.fit`: an `EKFAC`.

    batch_size is also that of the training steps which v is about. Raises ValueError for per-head
    blocks.
    """
    if blocks := [layer.name for layer in tracked.layers if layer.rows is not None]:
        raise ValueError(
            f"{blocks[0]} is split into heads; Adam's metric scales whole layers: "
            f"take per_head=False"
        )
    moments = second_moments(tracked, sequences, batch_size)
    scales = {name: _scales(v) for name, v in moments.items()}
    run = (tracked, sequences, fisher_losses(labels, samples, seed), batch_size)
    bases = {name: _scaled(*scales[name], *found) for name, found in covariances(*run).items()}
    return EKFAC(
        corrected_eigenvalues(*run, bases),
        {"metric": "adam", "labels": labels, "samples": samples, "seed": seed},
    )


def second_moments(tracked, sequences, batch_size):
    """v: the mean over batches of the squared gradient of a batch's mean loss, {layer: (o, i)}."""
    total = {layer.name: 0.0 for layer in tracked.layers}
    count = -(-len(sequences) // batch_size)

    def consume(layer, a, g, draw, batch):
        mean = sequence_gradient(a, g, layer.bias).sum(0) / len(a)
        total[layer.name] = total[layer.name] + mean.square() / count

    passes(tracked, sequences, [loss], batch_size, consume)
    return total


def _scales(v):
    """(r^(−1/4) (o,), c^(−1/4) (i,)) of v ≈ r cᵀ, each over its mean."""
    out, into = v.mean(1) ** -0.25, v.mean(0) ** -0.25
    return out / out.mean(), into / into.mean()


def _scaled(out, into, rows, A, B, positions):
    """Bases of the scaled weights: rows of the eigenbases of diag(s) A diag(s) times s."""
    found = eigenbases(rows, into[:, None] * A * into, out[:, None] * B * out, positions)
    basis_in, basis_out = into[:, None] * found.basis_in, out[:, None] * found.basis_out
    return replace(found, basis_in=basis_in, basis_out=basis_out)
