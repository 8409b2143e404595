"""Preconditioning layer by layer equals the gradients preconditioned all at once,
in either order of rotating: 1e-10 in float64."""

import pytest
import torch
from support.tiny import documents, lively, neox, relative
from transformers import GPTNeoXConfig, GPTNeoXForSequenceClassification

from msif.core import ekfac
from msif.core.data import Sequence
from msif.core.influence import Damping, Stage, precondition, query_gradients
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.objectives import logit_margin, loss
from msif.core.queries import preconditioned
from msif.curvature.dense import Dense

DATA = documents(12)
LONG = [
    Sequence(
        i,
        tuple((3 * i + 5 * t) % 12 for t in range(8)),
        tuple((3 * i + 5 * t) % 12 for t in range(8)),
    )
    for i in range(3)
]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("count, stage", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)])
def test_it_equals_the_gradients_preconditioned_all_at_once(count, stage, per_head):
    models = [neox(seed) for seed in range(count)]
    layers = tracked_layers(models[0], per_head=per_head)
    stages = [
        Stage(ekfac.fit(Tracked(m, layers), DATA), Damping(0.01 * (k + 1)), Damping(0.1 * k))
        for k, m in enumerate(models)
    ]
    for queries, measurement in (
        (documents(5, seed=7), logit_margin),
        (LONG, lambda *z: -loss(*z)),
    ):  # 2 to 8 positions
        expected = precondition(
            query_gradients(Tracked(models[-1], layers), queries, measurement), stages
        )[stage]
        found = preconditioned(
            Tracked(models[-1], layers),
            queries,
            stages,
            stage=stage,
            measurement=measurement,
            batch_size=2,
        )
        assert list(found) == list(expected)
        assert all(relative(found[name], x) < 1e-10 for name, x in expected.items())


@pytest.mark.parametrize("stage", [0, 1])
def test_a_new_head_is_solved_in_its_own_stage_and_left_out_of_earlier_ones(stage):
    config = GPTNeoXConfig(
        vocab_size=12,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
        pad_token_id=None,
    )
    classifier, model = lively(GPTNeoXForSequenceClassification(config)), neox()
    model.gpt_neox.layers = model.gpt_neox.layers[:1]
    rows = [Sequence(x.index, (x.index % 12, 1, 2), x.index % 3) for x in DATA]
    tracked_classifier = tracked(classifier, "dense|query_key_value|score")
    shared = [x for x in tracked_classifier.layers if x.name != "score"]
    stages = [
        Stage(ekfac.fit(Tracked(model, shared), DATA), Damping(0.1)),
        Stage(
            ekfac.fit(tracked_classifier, rows, batch_size=1),
            Damping(0.1),
            Damping(0.1),
            new=("score",),
        ),
    ]
    gradients = query_gradients(tracked_classifier, rows[:3], batch_size=1)
    expected = precondition(gradients, stages)[stage]
    found = preconditioned(tracked_classifier, rows[:3], stages, stage=stage, batch_size=1)
    assert list(found) == list(expected) and all(
        relative(found[name], x) < 1e-10 for name, x in expected.items()
    )


def test_other_curvature_is_refused():
    model = neox()
    tracked_model = tracked(model)
    dense = Dense(
        torch.eye(sum(x.out_features * (x.in_features + 1) for x in tracked_model.layers)),
        {x.name: (x.out_features, x.in_features + 1) for x in tracked_model.layers},
    )
    with pytest.raises(
        TypeError, match="Stage with Dense: expected influence.Stage with ekfac.EKFAC"
    ):
        preconditioned(tracked_model, DATA, [Stage(dense, Damping(1))])
