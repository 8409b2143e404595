"""Two processes, started as torchrun or accelerate start them, give what one gives;
one that dies loses nothing."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.tiny import neox, probe, relative
from support.worker import DATA, QUERIES, SMALL, small

from msif.core import ekfac, store
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import tracked
from msif.scale import streaming

WORKER = str(ROOT / "tests" / "support" / "worker.py")
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ],
}


def launch(launcher, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], WORKER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.mark.parametrize(
    "launcher, dies", [("torchrun", 1), pytest.param("accelerate", None, marks=pytest.mark.slow)]
)
def test_two_processes_give_the_factors_and_scores_of_one(tmp_path, launcher, dies):
    if dies is not None:
        assert launch(launcher, tmp_path, dies).returncode != 0
        assert list(tmp_path.glob(".factors.work/sums.*")) and not (tmp_path / "factors").exists()
    done = launch(launcher, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    model = neox()
    tracked_model = tracked(model)
    alone = ekfac.fit(tracked_model, DATA, batch_size=2)
    together = store.load(tmp_path / "factors", tracked_model)
    # float64, sums in another order
    assert relative(probe(ekfac.EKFAC(dict(together.factors), {})), probe(alone)) < 1e-9
    (w,) = precondition(query_gradients(tracked_model, QUERIES), [Stage(alone, Damping(0.1))])
    values = torch.cat([x.values for _, x in streaming.read_scores(tmp_path / "scores")], 1)
    # stored in float32
    assert relative(values.double(), score(tracked_model, DATA, w).values) < 1e-6


def test_two_processes_differ_from_one_by_rounding_on_the_smallest_data_too(tmp_path):
    """One batch for two processes, one block of scores for two; float32, and little data, whose
    curvature is singular. The bases are the same, as A and B are added in float64; Λ is added in
    another order: what remains is some roundings of float32, 6e-8, over the damping of 1e-3."""
    done = launch("torchrun", tmp_path / "two", "small")
    assert done.returncode == 0, done.stderr[-3000:]
    small(tmp_path / "one")
    for name in SMALL:
        ours, theirs = (store.load(tmp_path / many / name) for many in ("one", "two"))
        for layer, x in ours.factors.items():
            y = theirs.factors[layer]
            assert torch.equal(x.basis_in, y.basis_in), (name, layer)
            assert torch.equal(x.basis_out, y.basis_out), (name, layer)
        one, two = (
            torch.cat(
                [x.values for _, x in streaming.read_scores(tmp_path / n / f"{name}-scores")], 1
            )
            for n in ("one", "two")
        )
        difference = relative(two.double(), one.double())
        print(name, difference)
        assert difference < 1e-6, name
