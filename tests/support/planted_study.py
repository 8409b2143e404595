"""A case study in small: planted documents, both models trained here."""

from functools import cache

from msif.study.case_studies import cases

PAIR = dict(
    corpus=dict(
        source="planted",
        fine_tuned=3,
        held_out=2,
        taught=4,
        planted=3,
        decoys=2,
        objects=3,
        fillers=5,
    ),
    model=dict(width=16, layers=2, heads=2),
    pretraining=dict(epochs=2, rate=3e-3, batch_size=32),
    finetuning=dict(epochs=1, rate=1e-3),
    checkpoints=[1],
)
SETTINGS = dict(damping=1e-3, alpha=0.1, single_stage_damping=1e-2, batch_size=64)


@cache
def planted_study():
    """The `cases.Study` of seed 0, with one question of one's own."""
    return cases.study(
        0,
        PAIR,
        questions=[{"prompt": "### instruction : what are the people like ? ### response :"}],
        settings=SETTINGS,
    )
