"""A streamed corpus is scored as the whole list is, whatever the blocks, the processes,
and wherever a run was killed."""

import errno
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.streamed import all_scores
from support.tiny import documents, neox

from msif.core import files, influence
from msif.core.data import Sequence, digest
from msif.core.influence import query_gradients
from msif.core.layers import Tracked, tracked
from msif.scale import processes
from msif.scale.streaming import (
    estimate,
    part_bytes,
    read_scores,
    score_corpus,
    top_scores,
)

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def corpus():
    """A model, 23 documents, 3 query vectors,
    and the scores of the whole list as the parts hold them."""
    tracked_model = tracked(neox())
    docs = documents(23)
    w = query_gradients(tracked_model, documents(3, seed=9))
    whole = influence.score(tracked_model, docs, w)
    return SimpleNamespace(
        run=(tracked_model, docs, w),
        tracked=tracked_model,
        docs=docs,
        w=w,
        whole=whole,
    )


def parts(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("part-*")}


class Dying:
    """`influence.score`, until it has been called `lives` times."""

    def __init__(self, lives=float("inf")):
        self.lives, self.calls = lives, 0

    def __reduce__(self):  # what it is known by, however often it was called
        return "Dying"

    def __call__(self, *run, **options):
        self.calls += 1
        if self.calls > self.lives:
            raise KeyboardInterrupt
        return influence.score(*run, **options)


@pytest.mark.parametrize("block", [1, 4, 23, 100])
def test_a_stream_is_scored_as_the_whole_list_for_any_block_size(corpus, tmp_path, block):
    score_corpus(corpus.tracked, iter(corpus.docs), corpus.w, tmp_path, block=block)
    index, values, norms = all_scores(tmp_path)
    assert index.tolist() == list(range(23)) and values.dtype == norms.dtype == torch.float32
    torch.testing.assert_close(values, corpus.whole.values.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms, corpus.whole.norms.float())
    (_, one), *_ = read_scores(tmp_path, query=2)
    assert torch.equal(one.values, values[2, : len(one.values)])


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("top", [1, 5, 100])
def test_the_top_is_what_sorting_all_scores_gives(corpus, tmp_path, top, normalised):
    found = score_corpus(*corpus.run, tmp_path, block=4, top=top, normalised=normalised)
    index, values, norms = all_scores(tmp_path)
    values = values / norms if normalised else values
    for q, row in enumerate(values.tolist()):
        best = sorted(zip(row, index.tolist()), key=lambda x: (-x[0], x[1]))[:top]
        worst = sorted(zip(row, index.tolist()))[:top]
        assert list(zip(found.proponent_values[q].tolist(), found.proponents[q].tolist())) == best
        assert list(zip(found.opponent_values[q].tolist(), found.opponents[q].tolist())) == worst
    with pytest.raises(ValueError, match="top is 0"):
        top_scores(tmp_path, top=0)


def test_ties_are_in_the_order_of_the_index(corpus, tmp_path):
    same = [Sequence(10 + n, (1, 2, 3), (1, 2, 3)) for n in range(9)]
    found = score_corpus(corpus.tracked, same, corpus.w, tmp_path, block=4, top=6)
    assert found.proponents.tolist() == found.opponents.tolist() == [list(range(10, 16))] * 3


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_blocks_and_find_the_same(corpus, tmp_path, monkeypatch, size):
    expected = score_corpus(*corpus.run, tmp_path / "one", block=4)
    me, meeting = threading.local(), threading.Barrier(size)
    monkeypatch.setattr(processes, "rank_and_size", lambda: (getattr(me, "rank", 0), size))
    monkeypatch.setattr(processes, "barrier", lambda: meeting.wait(timeout=20))
    calls = [Dying() for _ in range(size)]

    def process(rank):
        me.rank = rank
        return score_corpus(
            Tracked(deepcopy(corpus.tracked.model), corpus.tracked.layers),
            *corpus.run[1:],
            tmp_path / "many",
            block=4,
            score=calls[rank],
        )

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(process, range(size)))
    assert [x.calls for x in calls] == [len(range(rank, 6, size)) for rank in range(size)]
    assert torch.equal(all_scores(tmp_path / "many")[1], all_scores(tmp_path / "one")[1])
    assert all(
        torch.equal(a, b) for x in found for a, b in zip(vars(x).values(), vars(expected).values())
    )


@pytest.mark.parametrize("lives", range(6))
def test_a_run_that_dies_after_any_block_goes_on_to_the_same_bytes(corpus, tmp_path, lives):
    expected = score_corpus(*corpus.run, tmp_path / "whole", block=4, score=Dying())
    with pytest.raises(KeyboardInterrupt):
        score_corpus(*corpus.run, tmp_path / "cut", block=4, score=Dying(lives))
    assert len(parts(tmp_path / "cut")) == lives
    with pytest.raises(ValueError, match="holds no finished run"):
        list(read_scores(tmp_path / "cut"))
    again = Dying()
    found = score_corpus(*corpus.run, tmp_path / "cut", block=4, score=again)
    assert again.calls == 6 - lives and parts(tmp_path / "cut") == parts(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values()))


def test_kill_9_while_a_part_is_written_loses_that_part_alone(corpus, tmp_path):
    def known(tracked, docs, w, **options):  # autograd does not survive a fork
        at = [x.index for x in docs]
        return influence.Scores(corpus.whole.values[:, at], corpus.whole.norms[at])

    def child():
        def write_half(table, path, write=pq.write_table, **options):
            write(table, path, **options)
            if "000002" in str(path):
                os.truncate(path, 500)
                os.kill(os.getpid(), signal.SIGKILL)

        pq.write_table = write_half
        score_corpus(*corpus.run, tmp_path / "cut", block=4, score=known)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(parts(tmp_path / "cut")) == ["part-000000.parquet", "part-000001.parquet"]
    assert len(list((tmp_path / "cut").glob(".part*.partial"))) == 1
    for folder in ("cut", "whole"):
        score_corpus(*corpus.run, tmp_path / folder, block=4, score=known)
    assert parts(tmp_path / "cut") == parts(tmp_path / "whole") and not list(
        (tmp_path / "cut").glob(".part*")
    )


def test_the_folder_of_other_work_is_refused(corpus, tmp_path):
    score_corpus(*corpus.run, tmp_path, block=4)
    before, (tracked, docs, w) = parts(tmp_path), corpus.run
    layers = tracked.layers
    for run, block, what in [
        ((tracked, docs, {name: 2 * x for name, x in w.items()}), 4, "w differ"),
        ((Tracked(neox(1), layers), docs, w), 4, "model differ"),
        ((tracked, docs[1:], w), 4, "first sequence differ"),
        (corpus.run, 5, "block differ"),
    ]:
        with pytest.raises(ValueError, match=what):
            score_corpus(*run, tmp_path, block=block)
    with pytest.raises(
        ValueError, match="part-000001.parquet holds other documents than block 1 of this stream"
    ):
        score_corpus(tracked, docs[:5] + docs[6:], w, tmp_path, block=4)
    assert parts(tmp_path) == before
    with pytest.raises(ValueError, match="part-000003.parquet lies beyond the end"):
        score_corpus(tracked, docs[:12], w, tmp_path, block=4)


def test_two_runs_exclude_each_other(corpus, tmp_path):
    with (
        files.exclusive(tmp_path / ".rank-0"),
        pytest.raises(files.Busy, match=f"written by process {os.getpid()}"),
    ):
        score_corpus(*corpus.run, tmp_path)


def test_a_missing_or_damaged_part_is_named(corpus, tmp_path):
    score_corpus(*corpus.run, tmp_path, block=4)
    path = tmp_path / "part-000002.parquet"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[whole.index((10).to_bytes(8, "little"))] ^= (
        1  # one bit of an index: the pages carry checksums
    )
    for damaged in (whole[:-40], whole[:200], b"", bytes(changed)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="part-000002.parquet is damaged"):
            list(read_scores(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match="part-000002.parquet is missing"):
        top_scores(tmp_path)
    score_corpus(*corpus.run, tmp_path, block=4)
    assert path.read_bytes() == whole


def test_what_cannot_be_scored_is_named_before_its_block_is(corpus, tmp_path):
    tracked_model, docs, w = corpus.run
    with pytest.raises(ValueError, match="sequence 99 has token id 12"):
        score_corpus(
            tracked_model,
            [*docs, Sequence(99, (1, 12), (1, 12))],
            w,
            tmp_path / "a",
            block=12,
        )
    assert sorted(parts(tmp_path / "a")) == ["part-000000.parquet"]
    with pytest.raises(ValueError, match="sequence 3 comes after sequence 22"):
        score_corpus(tracked_model, [*docs, docs[3]], w, tmp_path / "b")
    with pytest.raises(ValueError, match="no sequences"):
        score_corpus(tracked_model, [], w, tmp_path / "c")
    with pytest.raises(ValueError, match="block is 0"):
        score_corpus(*corpus.run, tmp_path / "d", block=0)


def test_what_is_not_finite_is_never_written(corpus, tmp_path):
    tracked_model, docs, w = corpus.run
    layers = tracked_model.layers
    broken = neox()
    broken.get_submodule(layers[2].name).weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=f"output of {layers[2].name} is NaN"):
        score_corpus(Tracked(broken, layers), docs, w, tmp_path / "a")
    with pytest.raises(FloatingPointError, match="the query vectors of .* are NaN or infinite"):
        infinite = {name: x * torch.inf for name, x in w.items()}
        score_corpus(tracked_model, docs, infinite, tmp_path / "b")
    with pytest.raises(FloatingPointError, match="a score of sequence 0 is NaN or infinite"):
        large = {name: x * 1e300 for name, x in w.items()}  # beyond float32
        score_corpus(tracked_model, docs, large, tmp_path / "b")
    assert not parts(tmp_path / "a") and not parts(tmp_path / "b")


def test_a_full_disk_stops_cleanly(corpus, tmp_path, monkeypatch):
    def full(table, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="the disk is full while writing .*part-000000.parquet"),
    ):
        patch.setattr(pq, "write_table", full)
        score_corpus(*corpus.run, tmp_path)
    assert not list(tmp_path.glob("*part*"))
    with pytest.raises(OSError, match="needs .* of disk"):
        score_corpus(corpus.tracked, iter(corpus.docs), corpus.w, tmp_path, documents=10**15)
    score_corpus(*corpus.run, tmp_path)


def test_the_plan_and_the_estimate_say_what_it_takes(corpus, tmp_path, capsys):
    tracked_model, docs, w = corpus.run
    found = estimate(tracked_model, docs, w, 10**6, batch_size=8)
    per_million = part_bytes(10**6, 3)
    assert found.disk == per_million and found.hours > 0 and found.tokens_per_second > 0
    assert estimate(tracked_model, docs, w, 2 * 10**6, batch_size=8).documents == 2 * 10**6
    assert (
        "1,000,000 documents, 3 queries: " in (said := capsys.readouterr().out)
        and "tokens/s" in said
    )
    score_corpus(*corpus.run, tmp_path, title="corpus", block=4)
    out, bar = capsys.readouterr()
    assert (
        "corpus: 23 documents, 3 queries; on disk 0.37 GiB per million documents" in out
        and "tokens/s" in bar
    )


@pytest.mark.parametrize("queries", [1, 40])
def test_the_disk_that_parts_take_is_as_announced(tmp_path, queries):
    def constant(tracked, docs, w, **options):
        return influence.Scores(torch.rand(queries, len(docs)), torch.ones(len(docs)))

    net = tracked(neox())
    docs = [Sequence(n, (1, 2), (1, 2)) for n in range(3000)]
    score_corpus(
        net,
        docs,
        {x.name: torch.zeros(queries, x.out_features, x.inputs) for x in net.layers},
        tmp_path,
        score=constant,
    )
    assert sum(map(len, parts(tmp_path).values())) == pytest.approx(
        part_bytes(3000, queries), rel=0.05
    )
    assert digest(docs[:1]) in (tmp_path / "work.json").read_text()
