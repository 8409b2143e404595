"""Several processes, one result: `torchrun` and `accelerate launch` set RANK and WORLD_SIZE, and a notebook has neither.

Every process calls the same function on the same data and takes its share of it; they meet in sums and at barriers, and
share a file system. A process that dies takes the others with it (the launcher sees to that); what each has checkpointed
stays, and the same command goes on from there.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

WAIT = timedelta(
    hours=12
)  # at a barrier: one rank may decompose a large layer while the others wait


def rank_and_size():
    """(this process's number, how many there are), after joining the launcher's group where there is one; else (0, 1)."""
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT
        )
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(items):
    """This process's part of a list: every size-th of it, so that items sorted by size are spread evenly."""
    rank, size = rank_and_size()
    return items[rank::size]


def add_over_processes(sums):
    """Replace each tensor of {name: tensor} by its sum over all processes, in place; all of them hold the same names."""
    if rank_and_size()[1] > 1:
        for name in sorted(sums):
            dist.all_reduce(sums[name])


def barrier():
    """Wait for all processes."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def device():
    """The GPU of this process by its LOCAL_RANK, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
