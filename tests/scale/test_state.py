"""Every file of every kind of work, swapped, flipped, cut short or taken from another run, is
refused by its reader, by name, or changes nothing."""

import shutil

import pytest
import torch
from support.begun import DAMPING, DATA, OTHERS, STOPS, begun, fit, numbers
from support.indexed import indexed
from support.tiny import documents, neox

from msif.core import files, store
from msif.core.layers import tracked
from msif.scale import index, processes, streaming

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def study():
    return indexed(DAMPING, per_head=False)


def each_change(path, neighbour, foreign):
    """(what is done to a file, its bytes then)."""
    whole = path.read_bytes()
    yield "cut", whole[: len(whole) * 2 // 3]
    yield "empty", b""
    for at in (9, len(whole) // 2, len(whole) - 20):
        yield f"bit {at}", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    if neighbour is not None:
        yield "neighbour's", neighbour.read_bytes()
    yield "another run's", foreign.read_bytes()


def walk(folder, other, read, right):
    """Change each file of a folder in each way: `read` raises, naming it, or gives what is right.

    How many changes were refused."""
    paths = sorted(x for x in folder.rglob("*") if x.is_file() and x.name != ".lock")
    refused = 0
    for path in paths:
        whole = path.read_bytes()
        neighbours = [x for x in paths if x.suffix == path.suffix and x != path]
        neighbour = neighbours[0] if neighbours else None
        foreign = other / path.relative_to(folder)
        if not foreign.exists():  # named by its content
            foreign = next(other.glob(f"{path.name[:4]}*"))
        for what, changed in each_change(path, neighbour, foreign):
            path.write_bytes(changed)
            try:
                found = read()
            except ValueError as error:
                assert path.name in str(error) or folder.name in str(error), (path, what, error)
                refused += 1
            else:
                assert torch.equal(found, right), (path.name, what)
            path.write_bytes(whole)
    assert torch.equal(read(), right)
    return refused, len(paths)


@pytest.mark.parametrize("stop", STOPS)
def test_the_work_of_a_fit(tmp_path, monkeypatch, stop):
    right = numbers(fit(tmp_path / "right"))
    work = begun(tmp_path / "f", DATA, STOPS[stop], monkeypatch)
    other = begun(tmp_path / "g", OTHERS, STOPS[stop], monkeypatch)
    refused = 0
    chosen = sorted(work.glob("*.safetensors"))[:: 1 + len(list(work.iterdir())) // 6]
    for path in [*chosen, work / "work.json"]:
        for what, changed in each_change(
            path, chosen[0] if path != chosen[0] else chosen[1], other / path.name
        ):
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            again = tmp_path / ".again.work"
            shutil.rmtree(again, ignore_errors=True)
            shutil.copytree(work, again)
            (again / path.name).write_bytes(changed)
            try:
                found = numbers(fit(tmp_path / "again"))
            except ValueError as error:
                assert path.name in str(error) or ".again.work" in str(error), (path.name, what)
                refused += 1
            else:  # a file that is not read any more
                assert torch.equal(found, right), (path.name, what)
    assert refused >= 6 * (1 if stop == "factors" else 2)


def test_what_another_number_of_processes_left_is_not_read(tmp_path, monkeypatch):
    right = numbers(fit(tmp_path / "right"))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "rank_and_size", lambda: (0, 2))
        patch.setattr(processes, "barrier", lambda: None)
        patch.setattr(processes, "add_over_processes", lambda _: None)
        work = begun(tmp_path / "f", DATA, STOPS["sums and kept"], monkeypatch)
    left = sorted(work.glob("*0of2*"))
    assert {x.name.split(".")[0] for x in left} == {"sums", "kept"}
    shutil.copytree(work, tmp_path / ".g.work")
    assert torch.equal(numbers(fit(tmp_path / "f")), right)
    for path in left:
        named = path.name.replace("0of2", "0of1")
        (tmp_path / ".g.work" / path.name).rename(tmp_path / ".g.work" / named)
    with pytest.raises(ValueError, match="0of1.* is a file of something else"):
        fit(tmp_path / "g")


def test_factors(tmp_path):
    fit(tmp_path / "f"), fit(tmp_path / "g", OTHERS)

    def read():
        return numbers(store.load(tmp_path / "f", tracked(neox()), in_memory=False))

    refused, count = walk(tmp_path / "f", tmp_path / "g", read, read())
    assert refused >= 6 * count


def test_scores(tmp_path, study):
    def score(folder, docs):
        streaming.score_corpus(study.tracked, docs, study.w, folder, block=8)

    score(tmp_path / "f", study.candidates)
    score(tmp_path / "g", documents(21, seed=8))

    def read():
        parts = list(streaming.read_scores(tmp_path / "f"))
        return torch.cat([torch.cat([i[None], s.norms[None], s.values]) for i, s in parts], 1)

    (tmp_path / "f" / "work.json").rename(tmp_path / "kept")  # not read by `read_scores`
    refused, count = walk(tmp_path / "f", tmp_path / "g", read, read())
    assert refused >= 6 * count
    (tmp_path / "kept").rename(tmp_path / "f" / "work.json")

    def resume():
        (tmp_path / "f" / "done.json").unlink(missing_ok=True)
        score(tmp_path / "f", study.candidates)
        return read()

    (tmp_path / "f" / "done.json").unlink()
    refused, _ = walk_but_done(tmp_path, resume, read)
    assert refused >= 6


def walk_but_done(tmp_path, resume, read):
    """What is refused is not certified: each part, changed, by the run that finds it."""
    folder = tmp_path / "f"
    resume()
    right, refused = read(), 0
    path = folder / "part-000001.parquet"
    for what, changed in each_change(
        path, folder / "part-000000.parquet", tmp_path / "g" / path.name
    ):
        whole = path.read_bytes()
        path.write_bytes(changed)
        try:
            assert torch.equal(resume(), right), what
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
        path.write_bytes(whole)
    return refused, right


def test_an_index(tmp_path, study):
    def build(folder, docs):
        return index.build(study.tracked, docs, study.factors, DAMPING, folder, size=64, block=8)

    build(tmp_path / "f", study.candidates)
    build(tmp_path / "g", documents(21, seed=8))

    def read():
        found = index.open(tmp_path / "f", study.factors)
        return torch.cat([found.score(study.w).values, found.norms[None]])

    def again():
        build(tmp_path / "f", study.candidates)
        return read()

    (tmp_path / "f" / "done.json").unlink()  # of the build alone
    (tmp_path / "f" / "work.json").rename(tmp_path / "kept")
    refused, count = walk(tmp_path / "f", tmp_path / "g", read, read())
    assert refused >= 6 * count
    (tmp_path / "kept").rename(tmp_path / "f" / "work.json")
    walk(tmp_path / "f", tmp_path / "g", again, again())  # nothing damaged is certified


def test_files_that_are_no_state_are_named(tmp_path):
    files.save(tmp_path / "x", {"a": torch.ones(2)}, work="w")
    assert files.load(tmp_path / "x", work="w")[1] == {"work": "w"}
    with pytest.raises(ValueError, match="x is a file of something else.*work is 'w' there"):
        files.load(tmp_path / "x", work="v")
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(ValueError, match="y is a file of something else.*file is 'x' there"):
        files.load(tmp_path / "y", work="w")
    (tmp_path / "z").write_text("[]")
    with pytest.raises(files.Damaged, match="z: truncated or changed"):
        files.read_record(tmp_path / "z")
