"""What the explorer's page shows first."""

from types import SimpleNamespace

from msif.study.tracing.explored import METHODS, methods_of, trained_on


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


def test_n_is_known_of_a_pair_that_was_trained_here(tmp_path):
    """Of another pair the documents are some of many."""
    bed = SimpleNamespace(folder=tmp_path, documents=[1, 2, 3])
    assert trained_on(bed) == 3
    (tmp_path / "models.json").touch()
    assert trained_on(bed) is None
