"""Run a piece of long work in child processes that are killed at random points, until one finishes.

    python tests/support/killed.py fit FOLDER KILLS SEED        or: score FOLDER KILLS SEED

Prints how many children were killed. The children are forked after the imports, so that kills fall
into the work itself; their lives are measured in processor time, so that kills fall into it on a
busy machine too. Nothing handles SIGPROF: like SIGKILL it ends a process at once."""

import os
import random
import resource
import signal
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from msif.core.influence import precondition  # noqa: E402,F401
from msif.core.layers import tracked
from msif.core.models import tiny_gpt_neox  # noqa: E402
from msif.scale import fitting, streaming
from msif.study.beds import testbed  # noqa: E402,F401  (imported before the fork)
from support.tiny import documents  # noqa: E402


def work(kind, folder):
    """A fit ("fit") or the scores of a corpus ("score"), into a folder."""
    model = tiny_gpt_neox(12, width=32, layers=2, heads=2, context=8)
    tracked_model = tracked(model)
    if kind == "fit":
        fitting.fit(
            folder,
            tracked_model,
            documents(120),
            batch_size=4,
            every=0.0,
            memory=os.environ.get("BUDGET"),
        )
    else:
        g = torch.Generator().manual_seed(0)
        w = {
            x.name: torch.randn(3, x.out_features, x.in_features + x.bias, generator=g)
            for x in tracked_model.layers
        }
        streaming.score_corpus(tracked_model, documents(240), w, folder, block=8, batch_size=4)


def processor_time(kind, folder):
    """Seconds of processor time that the whole work takes."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    child(kind, folder, None)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def child(kind, folder, life):
    """Run it in a child, killed after `life` seconds of processor time (None: never).
    Did it finish?"""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        if life is not None:
            signal.setitimer(signal.ITIMER_PROF, life)
        work(kind, folder)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
    finished = os.waitstatus_to_exitcode(status) == 0
    if not (killed or finished):
        sys.exit(f"the work failed with status {status}")
    return finished


if __name__ == "__main__":
    kind, folder, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    whole, rng, killed = processor_time(kind, folder + ".whole"), random.Random(seed), 0
    # short lives: most kills fall into one run of the work, and the first one surely
    longest = 1.2 * whole / max(kills, 2)
    while killed < kills and not child(kind, folder, rng.uniform(0.02, longest)):
        killed += 1
    child(kind, folder, None)
    print(killed)
