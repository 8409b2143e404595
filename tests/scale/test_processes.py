"""Two processes, started as torchrun or accelerate start them, give what one gives;
one that dies loses nothing."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.tiny import neox, probe, relative
from support.worker import DATA, QUERIES

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
