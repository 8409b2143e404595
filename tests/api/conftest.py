"""A pair of one's own, loaded, with its texts and two stages."""

import pytest
from support.own_pair import build, stages_of

import msif


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(folder):
    return msif.load(folder / "base"), msif.load(folder / "tuned")


@pytest.fixture(scope="module")
def given(folder, pair):
    """(documents, rows)"""
    base, tuned = pair
    return base.documents(folder / "documents.jsonl"), tuned.answers(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def stages(pair, given):
    return stages_of(pair, given)
