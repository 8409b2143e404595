"""Files are whole or absent, and one process at a time may write to a folder."""

import errno
import multiprocessing
import time
from collections import namedtuple

import pytest

from msif.core import files


def rows_that_break():
    yield {"n": 0}
    raise ZeroDivisionError


def broken_block(path):
    with files.atomic(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def broken_rows(path):
    files.write_json_lines(path, rows_that_break())


@pytest.mark.parametrize("write", [broken_block, broken_rows])
@pytest.mark.parametrize("before", [[], ["x.json"]], ids=["no file before", "a file before"])
def test_a_writer_that_raises_leaves_what_was_there_and_no_partial(tmp_path, write, before):
    for name in before:
        files.write_json(tmp_path / name, "old")
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "x.json")
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == dict.fromkeys(before, '"old"\n')


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with files.atomic(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "over quota"),
        RuntimeError("No space left on device"),  # as safetensors says it
    ],
    ids=["disk", "quota", "safetensors"],
)
def test_the_error_of_a_full_disk_names_the_file_and_what_is_free(tmp_path, monkeypatch, error):
    usage = namedtuple("Usage", "free")(3 * 2**28)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    says = r"full while writing .*x\.json \(0\.75 GiB free\)"
    with pytest.raises(OSError, match=says) as caught, files.atomic(tmp_path / "x.json"):
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is error


def hold(folder, pipe):
    with files.exclusive(folder):
        pipe.send("held")
        time.sleep(60)


def test_a_folder_is_held_until_its_process_ends_even_if_killed(tmp_path):
    here, there = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=hold, args=(tmp_path, there), daemon=True)
    process.start()
    assert here.poll(20) and here.recv() == "held"
    with pytest.raises(files.Busy, match=f"{tmp_path} is being written by process {process.pid}:"):
        with files.exclusive(tmp_path):
            pass
    process.kill()
    process.join(20)
    with files.exclusive(tmp_path):
        pass


def test_a_folder_is_free_again_after_a_block_that_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), files.exclusive(tmp_path / "new" / "nested"):
        raise ZeroDivisionError
    with files.exclusive(tmp_path / "new" / "nested"):
        pass


def test_json_lines_come_back_as_they_were_written(tmp_path):
    rows = [{"text": "zwei\nZeilen\r\u2028é"}, [1, 2.5, None], "", 0]
    files.write_json_lines(tmp_path / "x.jsonl", rows)
    assert list(files.json_lines(tmp_path / "x.jsonl")) == rows


def test_json_lines_before_an_empty_one_are_read_and_it_is_refused_by_file_and_number(tmp_path):
    (tmp_path / "x.jsonl").write_text("1\n2\n\n4\n")
    lines = files.json_lines(tmp_path / "x.jsonl")
    assert [next(lines), next(lines)] == [1, 2]
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3 is not JSON"):
        next(lines)


def test_sha256_of_does_not_depend_on_the_order_of_keys_but_on_all_else():
    digest = files.sha256_of({"a": [1, 2], "b": {"c": 3, "d": 4}})
    assert files.sha256_of({"b": {"d": 4, "c": 3}, "a": [1, 2]}) == digest
    others = ({"a": [2, 1], "b": {"c": 3, "d": 4}}, {"a": [1, 2], "b": {"c": 4, "d": 3}})
    assert digest not in [files.sha256_of(x) for x in others]
