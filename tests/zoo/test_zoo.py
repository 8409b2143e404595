"""The table of architectures in docs/architectures.md, line by line."""

import re

import pytest
import transformers
from zoo import checks, small

ROWS = checks.said()


def test_the_table_has_every_family_of_this_version_of_transformers():
    said = re.search(r"family of transformers (\S+) was", checks.PAGE.read_text())[1]
    if said != transformers.__version__:
        pytest.skip(f"the table is of transformers {said}: `python tests/zoo/checks.py` writes it")
    assert set(ROWS) == set(checks.families())


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_few_lines_of_the_table(family):
    assert checks.examined("causal", family).cells() == ROWS["causal", family]


@pytest.mark.slow
@pytest.mark.parametrize("head, family", list(ROWS), ids=map("-".join, ROWS))
def test_every_line_of_the_table(head, family):
    """Right to rounding, or refused, or not built, as the table says.

    What transformers says of a model that it cannot build may name any one of several things."""
    found = checks.examined(head, family)
    print(found)
    compared = 2 if found.verdict == "not built" else None
    assert found.cells()[:compared] == ROWS[head, family][:compared]


def test_small_models_are_small_and_the_same_each_time():
    one, two = (small.build("causal", "llama") for _ in range(2))
    assert all((x == y).all() for x, y in zip(one.parameters(), two.parameters()))
    assert sum(x.numel() for x in one.parameters()) < small.LARGEST
