"""What each of several processes runs in scale/test_processes.py:
fit and score in folders that they share.

torchrun --nproc-per-node 2 tests/support/worker.py FOLDER [RANK THAT DIES]
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from msif.core.influence import Damping, Stage, precondition, query_gradients  # noqa: E402
from msif.core.layers import tracked  # noqa: E402
from msif.scale import fitting, processes, streaming  # noqa: E402
from support.tiny import documents, neox  # noqa: E402

DATA, QUERIES = documents(14), documents(2, seed=5)


def run(folder, dies=None):
    """Process `dies` is gone after its third batch."""
    tracked_model = tracked(neox())
    rank = processes.rank_and_size()[0]
    batches = []
    backpropagate = fitting.backpropagate

    def mortal(*arguments):
        batches.append(arguments)
        if rank == dies and len(batches) == 3:
            os._exit(9)
        backpropagate(*arguments)

    fitting.backpropagate = mortal
    factors = fitting.fit(f"{folder}/factors", tracked_model, DATA, batch_size=2, every=0.0)
    (w,) = precondition(query_gradients(tracked_model, QUERIES), [Stage(factors, Damping(0.1))])
    streaming.score_corpus(tracked_model, DATA, w, f"{folder}/scores", block=4, batch_size=2, top=5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], *map(int, sys.argv[2:]))
