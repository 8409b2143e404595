"""What does not fit is refused before it starts, with what is needed and what is free."""

from collections import namedtuple

import pytest

from msif.core import resources
from msif.core.resources import require

GIB = 2**30


@pytest.fixture
def one_gib_free(monkeypatch):
    """One GiB of memory is free, and one of disk."""
    usage = namedtuple("Usage", "free")(GIB)
    monkeypatch.setattr(resources, "available_memory", lambda: GIB)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage)


def test_too_little_memory_names_what_is_needed_and_what_is_free(one_gib_free):
    says = "^factors: needs 2.50 GiB of memory, 1.00 GiB is free"
    with pytest.raises(MemoryError, match=says):
        require(what="factors", memory=5 * GIB // 2)


def test_too_little_disk_names_what_is_needed_where_and_what_is_free(one_gib_free, tmp_path):
    says = f"^factors: needs 2.50 GiB of disk at {tmp_path}, 1.00 GiB is free"
    with pytest.raises(OSError, match=says):
        require(what="factors", disk=5 * GIB // 2, folder=tmp_path)


def test_what_fits_to_the_last_byte_is_let_through_and_one_byte_more_is_not(one_gib_free):
    require(what="factors", memory=GIB, disk=GIB)
    with pytest.raises(MemoryError):
        require(what="factors", memory=GIB + 1)
    with pytest.raises(OSError):
        require(what="factors", disk=GIB + 1)


def test_resources_are_measured_and_unknown_memory_is_no_obstacle(monkeypatch, tmp_path):
    assert 2**20 < resources.available_memory() < 2**50
    require(what="nothing much", memory=1, disk=1, folder=tmp_path / "not" / "there" / "yet")
    monkeypatch.setattr(resources, "available_memory", lambda: None)
    require(what="a lot", memory=2**60)
