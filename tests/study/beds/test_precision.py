"""The test-bed in bfloat16: factors, queries and candidates of models in half precision,
sums and eigensolver as ever."""

import numpy as np
import pytest

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.study.beds import testbed
from msif.study.corpora.corpus import generate

SETTINGS = {
    "model": {"width": 32, "layers": 2, "heads": 2},
    "pretraining": {"epochs": 6, "rate": 3e-3},
    "finetuning": {"epochs": 3, "rate": 1e-3},
    "checkpoints": [3],
    "max_length": 32,
}


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision") / "bed"
    testbed.build(folder, generate(0, fine_tuned=6, held_out=6, objects=4, fillers=20), **SETTINGS)
    return testbed.load(folder)


def scores(bed, convert):
    first, last = (convert(bed.model(name)) for name in ("pretrained", "finetuned"))
    layers = tracked_layers(first)
    tracked_first = Tracked(first, layers)
    tracked_last = Tracked(last, layers)
    stages = [
        Stage(ekfac.fit(tracked_first, bed.documents), Damping(1e-3)),
        Stage(ekfac.fit(tracked_last, bed.finetuning), alpha=Damping(0.1)),
    ]
    q = query_gradients(tracked_last, bed.finetuning[:8])
    return score(tracked_first, bed.documents, precondition(q, stages)[0]).values.numpy()


def test_scores_of_bfloat16_models_correlate_with_those_of_float32(bed):
    """Each query's Pearson correlation over all documents is at least .99."""
    single, half = (scores(bed, convert) for convert in (lambda m: m, lambda m: m.bfloat16()))
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(single, half)]
    assert min(found) >= 0.99, found
