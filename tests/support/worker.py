"""What each of several processes runs in scale/test_processes.py:
fit and score in folders that they share.

torchrun --nproc-per-node 2 tests/support/worker.py FOLDER [RANK THAT DIES | small]
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from msif.core.influence import Damping, Stage, precondition, query_gradients  # noqa: E402
from msif.core.layers import tracked  # noqa: E402
from msif.scale import fitting, partition, processes, streaming  # noqa: E402
from support.families import gpt_neox, llama  # noqa: E402
from support.tiny import documents, neox  # noqa: E402

DATA, QUERIES = documents(14), documents(2, seed=5)
# (model in float32, documents, batch size): one batch, three, and many
SMALL = {
    "one": (llama, 2, 32),
    "three": (gpt_neox, 6, 2),
    "many": (llama, 60, 4),
}


def run(folder, dies=None):
    """Process `dies` is gone after its third batch."""
    tracked_model = tracked(neox())
    rank = processes.rank_and_size()[0]
    batches = []
    backpropagate = partition.backpropagate

    def mortal(*arguments):
        batches.append(arguments)
        if rank == dies and len(batches) == 3:
            os._exit(9)
        backpropagate(*arguments)

    partition.backpropagate = mortal
    factors = fitting.fit(f"{folder}/factors", tracked_model, DATA, batch_size=2, every=0.0)
    (w,) = precondition(query_gradients(tracked_model, QUERIES), [Stage(factors, Damping(0.1))])
    streaming.score_corpus(tracked_model, DATA, w, f"{folder}/scores", block=4, batch_size=2, top=5)


def small(folder):
    """Factors and scores of the float32 models of `SMALL`, in folders of their names."""
    for name, (make, count, batch_size) in SMALL.items():
        torch.manual_seed(0)
        net, data = tracked(make()), documents(count)
        factors = fitting.fit(f"{folder}/{name}", net, data, batch_size=batch_size, samples=1)
        stages = [Stage(factors, Damping(1e-3))]
        (w,) = precondition(query_gradients(net, QUERIES), stages)
        target = f"{folder}/{name}-scores"
        streaming.score_corpus(net, data, w, target, block=count, batch_size=batch_size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["small"]:
        small(sys.argv[1])
    else:
        run(sys.argv[1], *map(int, sys.argv[2:]))
