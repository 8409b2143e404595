"""What an index is made of, in small."""

from types import SimpleNamespace

from msif.core import influence
from msif.core.ekfac import fit
from msif.core.influence import Stage, precondition, query_gradients
from msif.core.layers import tracked
from support.tiny import documents, neox


def indexed(damping, per_head):
    """Factors fitted on other documents than the 21 candidates, and query vectors of both signs."""
    model = neox()
    tracked_model = tracked(model, per_head=per_head)
    factors = fit(tracked_model, documents(20, seed=5))
    w = precondition(
        query_gradients(tracked_model, documents(4, seed=9)),
        [Stage(factors, damping=damping)],
    )[0]
    candidates = documents(21, first=100)
    whole = influence.score(tracked_model, candidates, w)
    return SimpleNamespace(
        tracked=tracked_model,
        factors=factors,
        w=w,
        candidates=candidates,
        whole=whole,
    )
