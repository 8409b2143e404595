"""A document's influence on itself: the diagonal of the scores, by the inverse of its stage."""

import pytest
from support.chained import chained, stages_of
from support.tiny import relative

from msif.core.influence import Damping, Stage, query_gradients, score, self_influence
from msif.curvature.unrolling import Unrolled


@pytest.fixture(scope="module")
def study():
    return chained()


def test_self_influence_is_the_diagonal_of_the_scores_of_documents_for_themselves(study):
    stage, tracked_model, data = stages_of(study)[1], study.tracked[1], study.data[1]
    w = stage.inverse(query_gradients(tracked_model, data))
    expected = score(tracked_model, data, w).values.diagonal()
    assert (expected > 0).all()
    for size in (2, 32):
        assert relative(self_influence(tracked_model, data, stage, size), expected) < 1e-10


def test_self_influence_is_by_the_stages_own_inverse(study):
    """An unrolled stage has another filter, though its curvature is EK-FAC too; layers that are new
    have no α; no gradient of all layers is held where layers are independent."""
    curvature, tracked_model, data = study.factors[1], study.tracked[1], study.data[1]
    last = study.layers[-1].name
    for stage in (
        Unrolled(curvature, time=2.0),
        Stage(curvature, Damping(0.1), alpha=Damping(3.0), new=(last,)),
    ):
        w = stage.inverse(query_gradients(tracked_model, data))
        expected = score(tracked_model, data, w).values.diagonal()
        assert relative(self_influence(tracked_model, data, stage), expected) < 1e-10
