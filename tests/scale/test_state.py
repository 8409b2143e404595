"""Every file of every kind of work, swapped, flipped, cut short or taken from another run, is
refused by its reader, by name, or changes nothing."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from support.indexed import indexed
from support.tiny import documents, neox, probe

from msif.core import ekfac, files, influence, queries, store
from msif.core.influence import Damping, Stage
from msif.core.layers import tracked
from msif.scale import fitting, index, lowrank, partition, processes, streaming

pytest.importorskip("pyarrow")

DAMPING = Damping(0.1)
DATA, OTHERS = documents(14), documents(14, seed=8)


class Power(Exception):
    """It is cut."""


@pytest.fixture(scope="module")
def study():
    return indexed(DAMPING, per_head=False)


def begun(folder, data, stop, monkeypatch):
    """A fit that ends before it decomposes or saves, with all that it wrote until then."""
    with monkeypatch.context() as patch, pytest.raises(Power):

        def cut(*_, **__):
            raise Power

        patch.setattr(*stop, cut)
        fit(folder, data)
    return folder.with_name(f".{folder.name}.work")


def fit(folder, data=DATA):
    return fitting.fit(folder, tracked(neox()), data, batch_size=4, every=0, keep="1MB")


def numbers(factors):
    return probe(ekfac.EKFAC(dict(factors.factors), factors.header))


STOPS = {
    "sums and kept": (fitting.ekfac, "eigenbases"),
    "bases and kept": (fitting.ekfac, "mean_eigenvalues"),
    "factors": (fitting.store, "save"),
}


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


def test_a_folder_of_another_kind_is_refused_before_any_pass_and_nothing_in_it_is_lost(
    tmp_path, study, monkeypatch
):
    store.save(study.factors, tmp_path / "factors")
    streaming.score_corpus(study.tracked, study.candidates, study.w, tmp_path / "scores")
    index.build(
        study.tracked, study.candidates, study.factors, DAMPING, tmp_path / "index", size=64
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    monkeypatch.setattr(partition, "backpropagate", lambda *_: 1 / 0)
    monkeypatch.setattr(streaming.influence, "passes", lambda *_: 1 / 0)

    def into(kind, folder):
        if kind == "factors":
            fitting.fit(folder, study.tracked, DATA)
        elif kind == "scores":
            streaming.score_corpus(study.tracked, study.candidates, study.w, folder)
        else:
            index.build(study.tracked, study.candidates, study.factors, DAMPING, folder, size=64)

    there = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file() and x.name != ".lock"}
    for kind in ("factors", "scores", "index"):
        for name in {"factors", "scores", "index", "thesis", "file"} - {kind}:
            with pytest.raises(ValueError, match=str(tmp_path / name)):
                into(kind, tmp_path / name)
    with pytest.raises(store.FactorsError):
        store.save(study.factors, tmp_path / "index")
    assert there == {x: x.read_bytes() for x in there}


@pytest.mark.parametrize("kind", ["fit", "score"])
def test_the_name_of_the_present_folder_is_a_folder(tmp_path, monkeypatch, study, kind):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if kind == "fit":
        fitting.fit(".", study.tracked, DATA)
        assert numbers(store.load(".", study.tracked)) is not None
    else:
        streaming.score_corpus(study.tracked, study.candidates, study.w, ".")


def test_killed_writers_leave_nothing_behind(tmp_path, monkeypatch):
    right = numbers(fit(tmp_path / "right"))
    work = begun(tmp_path / "f", DATA, STOPS["bases and kept"], monkeypatch)
    (work / ".sums.x.safetensors.123.partial").write_bytes(b"half")
    with monkeypatch.context() as patch, pytest.raises(Power):

        def saved_then_cut(*arguments, save=store.save):
            save(*arguments)
            raise Power  # between saving and clearing

        patch.setattr(fitting.store, "save", saved_then_cut)
        fit(tmp_path / "f")
    assert list(work.glob("*.safetensors"))
    assert torch.equal(numbers(fit(tmp_path / "f")), right)
    assert [x.name for x in work.rglob("*") if x.is_file()] == [".lock"]


def test_factors_are_there_at_every_moment_of_being_replaced(tmp_path, monkeypatch):
    old, new = fit(tmp_path / "old"), fit(tmp_path / "new", OTHERS)
    allowed = [numbers(old), numbers(new)]
    steps, seen = ("replace", "unlink"), []
    store.save(old, tmp_path / "f")

    def watched(call):
        def step(*arguments, **options):
            call(*arguments, **options)
            found = numbers(store.load(tmp_path / "f"))
            seen.append([torch.equal(found, x) for x in allowed])

        return step

    for name in steps:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
    store.save(new, tmp_path / "f")
    assert len(seen) > 10 and all(map(any, seen)) and seen[0] == [True, False]
    assert seen[-1] == [False, True]


def test_keep_is_a_budget_over_resumes_and_is_asked_of_the_disk(tmp_path, monkeypatch):
    work = begun(tmp_path / "f", DATA, STOPS["bases and kept"], monkeypatch)
    whole = sum(x.stat().st_size for x in work.glob("kept.*"))
    shutil.rmtree(work)
    budget, passing = whole // 3, partition.backpropagate
    for stop in (2, 3, 4):  # three runs, each with the whole budget again, if it were
        seen = []

        def dying(*arguments):
            seen.append(0)
            if len(seen) == stop:
                raise Power
            passing(*arguments)

        monkeypatch.setattr(partition, "backpropagate", dying)
        with pytest.raises(Power):
            fitting.fit(tmp_path / "f", tracked(neox()), DATA, batch_size=4, every=1e9, keep=budget)
        assert sum(x.stat().st_size for x in work.glob("kept.*")) <= 1.5 * budget
    asked = []
    monkeypatch.setattr(fitting, "require", lambda **x: asked.append(x["disk"]))
    monkeypatch.setattr(partition, "backpropagate", passing)
    fit(tmp_path / "a"), fitting.fit(tmp_path / "b", tracked(neox()), DATA, batch_size=4)
    assert asked[0] > asked[1]


def test_a_shorter_corpus_leaves_the_finished_run_as_it_was(tmp_path, study):
    run = study.tracked, study.candidates, study.w
    streaming.score_corpus(*run, tmp_path, block=8)
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.is_file()}
    with pytest.raises(ValueError, match="part-000002.parquet lies beyond the end"):
        streaming.score_corpus(run[0], run[1][:16], run[2], tmp_path, block=8)
    assert before == {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.is_file()}
    assert len(list(streaming.read_scores(tmp_path))) == 3


def test_another_objective_of_the_same_name_is_other_work(tmp_path, study):
    run = study.tracked, study.candidates, study.w, tmp_path
    one, two = [lambda x, b: influence.loss(x, b), lambda x, b: 2 * influence.loss(x, b)]
    streaming.score_corpus(*run, objective=one)
    with pytest.raises(ValueError, match="objective differ"):
        streaming.score_corpus(*run, objective=two)
    streaming.score_corpus(*run, objective=one)


def test_other_blocks_than_the_finished_ones_are_refused(tmp_path):
    fit(tmp_path / "f")
    with pytest.raises(store.FactorsError, match="per-head setting"):
        fitting.fit(tmp_path / "f", tracked(neox(), per_head=True), DATA, batch_size=4)


def test_what_has_no_meaning_is_refused_before_any_pass(tmp_path, study, monkeypatch):
    monkeypatch.setattr(streaming.influence, "passes", lambda *_: 1 / 0)
    run, name = (study.tracked, study.candidates), study.tracked.names[0]
    turned = {k: x.mT for k, x in study.w.items()}
    infinite = {**study.w, name: study.w[name] * torch.inf}
    for w, error, says in [
        ({}, ValueError, "do not have the same layers"),
        (turned, ValueError, f"the query vectors of {name} have the shape"),
        (infinite, FloatingPointError, f"query vectors of {name} are NaN or infinite"),
    ]:
        for call in (
            lambda w: influence.score(*run, w),
            lambda w: influence.token_scores(*run, w),
            lambda w: streaming.score_corpus(*run, w, tmp_path / "x"),
        ):
            with pytest.raises(error, match=says):
                call(w)
    for options, says in [
        ({"top": 0}, "top is 0"),
        ({"top": 2.5}, "top is 2.5"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"block": 0}, "block is 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            streaming.score_corpus(*run, study.w, tmp_path / "x", **options)
    for call in (
        lambda x: influence.score(study.tracked, x, study.w),
        lambda x: influence.query_gradients(study.tracked, x),
        lambda x: influence.self_influence(study.tracked, x, Stage(study.factors, DAMPING)),
        lambda x: queries.preconditioned(study.tracked, x, [Stage(study.factors, DAMPING)]),
        lambda x: ekfac.fit(study.tracked, x),
        lambda x: fitting.fit(tmp_path / "y", study.tracked, x),
    ):
        with pytest.raises(ValueError, match="generator.*expected a list"):
            call(x for x in study.candidates)
    with pytest.raises(ValueError, match="damping is 0.1: expected a Damping"):
        index.choose(study.factors, 0.1, 8)
    with pytest.raises(ValueError, match="keep is 'lots': expected a size"):
        fitting.fit(tmp_path / "y", study.tracked, DATA, keep="lots")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):  # a batch is no larger than its block: it has room
        streaming.score_corpus(*run, study.w, tmp_path / "x", batch_size=10**9)


def test_a_stage_that_is_not_there_is_refused(study):
    stages = [Stage(study.factors, DAMPING), Stage(study.factors, DAMPING, DAMPING)]
    for stage in (-1, 2, 0.5):
        with pytest.raises(ValueError, match="stage is"):
            queries.preconditioned(study.tracked, DATA[:2], stages, stage=stage)


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


def test_no_tracked_layers_are_refused(tmp_path):
    none = tracked(neox()).only([])
    for call in (
        lambda: ekfac.fit(none, DATA),
        lambda: fitting.fit(tmp_path / "f", none, DATA),
        lambda: influence.query_gradients(none, DATA),
    ):
        with pytest.raises(ValueError, match="the number of tracked layers is 0"):
            call()
    with pytest.raises(ValueError, match="there are no query vectors"):
        influence.score(none, DATA, {})


def test_sequences_that_share_an_index_are_refused_everywhere(tmp_path, study):
    twice = [*DATA[:3], DATA[0]]
    chosen = index.choose(study.factors, DAMPING, 8)
    low = lowrank.compress(study.w, study.factors, 0.1)
    for call in (
        lambda: influence.score(study.tracked, twice, study.w),
        lambda: lowrank.score(study.tracked, twice, low),
        lambda: chosen.documents(study.tracked, twice),
        lambda: ekfac.fit(study.tracked, twice),
        lambda: fitting.fit(tmp_path / "f", study.tracked, twice),
    ):
        with pytest.raises(ValueError, match="share their index"):
            call()
    with pytest.raises(ValueError, match="the indices of a stream must rise"):
        streaming.score_corpus(study.tracked, twice, study.w, tmp_path / "s")
