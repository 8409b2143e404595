"""Fitting into a folder: the same factors as in memory, whatever the partitions, the processes,
and the kills on the way."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.tiny import documents, neox, probe, relative

from msif.core import ekfac, files, store
from msif.core.data import Sequence
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.models import tiny_gpt_neox
from msif.scale import fitting, partition
from msif.scale.plan import plan_fit

DATA = documents(14)
KILLED = ROOT / "tests" / "support" / "killed.py"


def in_memory(factors):
    return ekfac.EKFAC(dict(factors.factors), factors.header)


def contents(folder):
    return {
        x.name: hashlib.sha256(x.read_bytes()).hexdigest()
        for x in sorted(Path(folder).iterdir())
        if x.suffix in (".safetensors", ".parquet")
    }


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("labels", ["gaussian", "true"])
def test_factors_in_a_folder_equal_those_in_memory(tmp_path, labels, per_head):
    model = neox()
    tracked_model = tracked(model, per_head=per_head)
    expected = ekfac.fit(tracked_model, DATA, labels=labels, batch_size=4)
    found = fitting.fit(tmp_path / "f", tracked_model, DATA, labels=labels, batch_size=4)
    # eigenvectors lie in another order in memory
    assert relative(probe(in_memory(found)), probe(expected)) < 1e-12
    assert torch.equal(probe(store.load(tmp_path / "f", tracked_model)), probe(in_memory(found)))
    assert expected.header.items() <= found.header.items()


def test_factors_in_a_folder_are_those_in_memory_in_float32_too(tmp_path):
    """The same bases to the bit; Λ to rounding, as bases lie in another order in memory."""
    net = tracked(neox().float())
    there = fitting.fit(tmp_path / "f", net, DATA, batch_size=4).factors
    for name, here in ekfac.fit(net, DATA, batch_size=4).factors.items():
        for what in ("in_values", "out_values", "basis_in", "basis_out"):
            assert torch.equal(getattr(here, what), getattr(there[name], what)), what
        assert relative(there[name].eigenvalues, here.eigenvalues) < 1e-6


def test_a_memory_budget_makes_partitions_that_do_not_change_the_factors(tmp_path, capsys):
    model = tiny_gpt_neox(12, width=64, layers=2, heads=2, context=8)
    layers, data = tracked_layers(model), documents(6)
    tracked_model = Tracked(model, layers)
    whole = plan_fit(tracked_model, [len(x.input_ids) for x in data], draws=2)
    once = fitting.fit(tmp_path / "one", tracked_model, data, title="fit")
    assert "partitions 1:" in capsys.readouterr().out and len(whole.partitions) == 1
    split = fitting.fit(
        tmp_path / "two", tracked_model, data, memory=whole.peak * 4 // 5, title="fit"
    )
    assert "partitions 1:" not in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and list(once.factors) == list(
        split.factors
    )


def test_a_budget_that_one_layer_exceeds_is_refused_before_anything_runs(tmp_path):
    model = neox()
    with pytest.raises(
        MemoryError, match="query_key_value alone needs .* the budget is 9.77 KiB: give more memory"
    ):
        fitting.fit(tmp_path / "f", tracked(model), DATA, memory="10KB")
    assert not (tmp_path / "f").exists()


def test_a_failure_leaves_a_checkpoint_and_the_next_call_goes_on_from_it_to_the_same_bits(
    tmp_path, monkeypatch
):
    model = neox()
    layers, seen, backpropagate = tracked_layers(model), [], partition.backpropagate
    tracked_model = Tracked(model, layers)

    def failing(tracked, batch, *rest):
        seen.append(batch.index.tolist())
        if len(seen) == 6:  # in the eigenvalue pass: there are 4 batches
            raise RuntimeError("power cut")
        backpropagate(tracked_model, batch, *rest)

    monkeypatch.setattr(partition, "backpropagate", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        fitting.fit(tmp_path / "f", tracked_model, DATA, batch_size=4, every=0)
    fitting.fit(tmp_path / "f", tracked_model, DATA, batch_size=4, every=0)
    # the batch that failed and those after it, nothing else
    assert seen[6:] == seen[5:6] + seen[2:4]
    fitting.fit(tmp_path / "g", tracked_model, DATA, batch_size=4)
    assert contents(tmp_path / "f") == contents(tmp_path / "g")
    assert not list(tmp_path.glob(".f.work/*.safetensors"))


@pytest.mark.parametrize("keep", [10**9, 5000])  # all batches, or the first ones
def test_what_the_covariance_pass_keeps_the_eigenvalue_pass_reads_to_the_same_bits(
    tmp_path, monkeypatch, keep
):
    model, seen, backpropagate = neox(), [], partition.backpropagate
    monkeypatch.setattr(
        partition, "backpropagate", lambda *found: (seen.append(0), backpropagate(*found))
    )
    fitting.fit(tmp_path / "f", tracked(model), DATA, batch_size=4)
    assert len(seen) == 8
    fitting.fit(tmp_path / "g", tracked(model), DATA, batch_size=4, keep=keep)
    assert len(seen) - 8 == 4 if keep == 10**9 else 4 < len(seen) - 8 <= 8
    assert contents(tmp_path / "f") == contents(tmp_path / "g") and not list(
        tmp_path.glob(".g.work/*.safetensors")
    )


def killed(folder, kind, kills, seed, **environment):
    done = subprocess.run(
        [sys.executable, KILLED, kind, folder, str(kills), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def test_a_fit_killed_at_random_points_ends_in_the_same_bits(tmp_path):
    assert killed(tmp_path / "f", "fit", 2, seed=0) >= 1
    assert contents(tmp_path / "f") == contents(tmp_path / "f.whole") != {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", ["1GiB", "1.5MB"])
def test_a_fit_killed_at_twenty_points_ends_in_the_same_bits(tmp_path, budget, seed):
    assert killed(tmp_path / "f", "fit", 20, seed, BUDGET=budget) >= 8
    assert contents(tmp_path / "f") == contents(tmp_path / "f.whole") != {}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_scoring_killed_at_random_points_ends_in_the_same_bits(tmp_path, kills):
    assert killed(tmp_path / "s", "score", kills, seed=0) >= kills * 2 // 5 + (kills == 2)
    assert (
        contents(tmp_path / "s") == contents(tmp_path / "s.whole")
        and len(contents(tmp_path / "s")) == 30
    )


def test_a_second_run_on_the_folder_is_refused_while_the_first_one_holds_it(tmp_path):
    model = neox()
    with files.exclusive(tmp_path / ".f.work" / "rank0"):
        with pytest.raises(files.Busy, match=f"being written by process {os.getpid()}"):
            fitting.fit(tmp_path / "f", tracked(model), DATA)


def test_unfinished_work_of_other_settings_is_refused_by_name(tmp_path, monkeypatch):
    model = neox()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(partition, "backpropagate", lambda *_: 1 / 0)
        fitting.fit(tmp_path / "f", tracked(model), DATA)
    with pytest.raises(ValueError, match="the work of other inputs or settings: seed differ"):
        fitting.fit(tmp_path / "f", tracked(model), DATA, seed=1)


def test_finished_factors_of_other_settings_are_refused_and_the_same_ones_returned(
    tmp_path, monkeypatch
):
    model = neox()
    tracked_model = tracked(model)
    once = fitting.fit(tmp_path / "f", tracked_model, DATA)
    with pytest.raises(store.FactorsError, match="factors with another seed"):
        fitting.fit(tmp_path / "f", tracked_model, DATA, seed=1)
    monkeypatch.setattr(partition, "backpropagate", lambda *_: 1 / 0)
    assert torch.equal(
        probe(in_memory(fitting.fit(tmp_path / "f", tracked_model, DATA))),
        probe(in_memory(once)),
    )


def test_unreadable_sequences_are_refused_before_anything_is_written(tmp_path):
    model = neox()
    with pytest.raises(ValueError, match="token id 99"):
        fitting.fit(tmp_path / "f", tracked(model), [Sequence(0, (1, 99), (1, 99))])
    assert not list(tmp_path.iterdir())


def test_a_damaged_layer_file_is_named_when_it_is_read(tmp_path):
    model = neox()
    found = fitting.fit(tmp_path / "f", tracked(model), DATA)
    path = next((tmp_path / "f").glob("0001-*"))
    path.write_bytes(b"0")
    name = list(found.factors)[1]
    with pytest.raises(store.FactorsError, match=f"{path.name}: truncated or changed"):
        found.factors[name]


def test_a_full_disk_says_so_and_keeps_the_checkpoint_that_was_there(tmp_path):
    path = tmp_path / "x.safetensors"
    files.save(path, {"x": torch.ones(2)}, batches=1)
    (tmp_path / f".x.safetensors.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match="the disk is full while writing .*x.safetensors.*run the same command again"
    ):
        with files.atomic(path) as partial:
            partial.write_text("more")
    assert files.load(path)[1] == {"batches": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["x.safetensors"]
