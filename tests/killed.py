"""Run a piece of long work in child processes that are killed at random moments, until one finishes.

    python tests/killed.py fit FOLDER KILLS SEED        or: score FOLDER KILLS SEED

Prints how many children were killed. The children are forked after the imports, so that kills fall into the work itself."""
import os
import random
import signal
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(__file__))
from msif import fitting, streaming, testbed  # noqa: E402,F401  (imported before the fork)
from msif.influence import precondition  # noqa: E402,F401
from msif.models import tiny_gpt_neox, tracked_layers  # noqa: E402
from tiny import documents  # noqa: E402


def work(kind, folder):
    model = tiny_gpt_neox(12, width=32, layers=2, heads=2, context=8)
    layers = tracked_layers(model)
    if kind == "fit":
        fitting.fit(folder, model, layers, documents(120), batch_size=4, every=0.0, memory=os.environ.get("BUDGET"))
    else:
        g = torch.Generator().manual_seed(0)
        w = {x.name: torch.randn(3, x.out_features, x.in_features + x.bias, generator=g) for x in layers}
        streaming.score_corpus(model, layers, documents(240), w, folder, block=8, batch_size=4)


def timed(kind, folder):
    start = time.monotonic()
    child(kind, folder, None)
    return time.monotonic() - start


def child(kind, folder, after):
    """Run it in a child, killed `after` seconds (None: never). Did it finish?"""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        work(kind, folder)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not (os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0):
        sys.exit(f"the work failed with status {status}")
    return not os.WIFSIGNALED(status)


if __name__ == "__main__":
    kind, folder, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    whole, rng, killed = timed(kind, folder + ".whole"), random.Random(seed), 0
    while killed < kills:                     # short lives, so that many fall into one run of the work
        if child(kind, folder, rng.uniform(0.02, 2 * whole / max(kills, 2))):
            break
        killed += 1
    child(kind, folder, None)
    print(killed)
