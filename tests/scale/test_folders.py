"""A folder keeps what it has: finished runs, those cut short, other kinds of work, and no more than
`keep` allows."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from support.begun import DAMPING, DATA, OTHERS, STOPS, Power, begun, fit, numbers
from support.indexed import indexed
from support.tiny import neox

from msif.core import influence, store
from msif.core.layers import tracked
from msif.scale import fitting, index, partition, streaming

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def study():
    return indexed(DAMPING, per_head=False)


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
