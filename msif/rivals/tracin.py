"""TracInCP: what training on a document did to a query's loss, summed over checkpoints.

    s(z) = Σ_k η_k ⟨∇ℓ_query(θ_k), ∇ℓ_z(θ_k)⟩

Both gradients are at the checkpoint, η_k is the learning rate that led to it. Positive = proponent.
In nats per pass over z, as if a step of plain gradient descent on it began at each checkpoint; for
another optimiser it has no unit. Source: Pruthi et al. 2020 (arXiv 2002.08484), section 3.3.
"""


def tracincp(products, rates=None):
    """TracInCP's scores (q, n) of `products`: of each checkpoint ⟨∇ℓ_query, ∇ℓ_z⟩ (q, n).

    rates: η_k, one a checkpoint; None for a constant rate, in units of which the scores then are.
    Raises ValueError for no checkpoint, another number of rates, and a rate that is not positive.
    """
    products = list(products)
    rates = [1.0] * len(products) if rates is None else list(rates)
    if not products or len(rates) != len(products) or not all(rate > 0 for rate in rates):
        raise ValueError(
            f"learning rates {rates} for {len(products)} checkpoints: expected a positive one for "
            f"each of at least one checkpoint"
        )
    return sum(rate * x for rate, x in zip(rates, products))
