"""What the explorer's page shows first."""

from msif.study.tracing.explored import METHODS, methods_of


def test_what_stands_for_influence_comes_first():
    assert list(methods_of(dict.fromkeys(METHODS)))[:2] == [
        "multi-stage, over checkpoints",
        "single-stage, normalised",
    ]
    given = [name for name in METHODS if "trajectory" not in name]  # a pair without checkpoints
    assert list(methods_of(dict.fromkeys(given)))[:2] == [
        "multi-stage, normalised",
        "single-stage, normalised",
    ]
