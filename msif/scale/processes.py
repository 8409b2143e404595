"""Several processes, one result: `torchrun` and `accelerate launch` set RANK and WORLD_SIZE, a
notebook has neither.

Every process calls the same function on the same data and takes its share of it, which may be
nothing; they meet in sums and at barriers, and share a file system. All of them return the same
result. The same number of processes gives the same bits again on the same machine; another number
gives them up to the order in which floating-point numbers are added (`msif.scale.fitting` says how
much that is). A process that dies takes the others with it (the launcher sees to that); what each
has checkpointed stays, and the same command goes on from there.
"""

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

# At a barrier: one rank may decompose a large layer while the others wait.
WAIT = timedelta(hours=12)

Item = TypeVar("Item")


def rank_and_size() -> tuple[int, int]:
    """(this process's number, how many there are), after joining the launcher's group where there
    is one; else (0, 1)."""
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=WAIT)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(items: list[Item]) -> list[Item]:
    """This process's part of a list: every size-th of it, so that items sorted by size are spread
    evenly."""
    rank, size = rank_and_size()
    return items[rank::size]


def add_over_processes(sums: dict[str, Tensor]) -> None:
    """Replace each tensor of {name: tensor} by its sum over all processes, in place.

    All processes hold the same names and shapes."""
    if rank_and_size()[1] > 1:
        for name in sorted(sums):
            dist.all_reduce(sums[name])


def barrier() -> None:
    """Wait for all processes."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def device() -> torch.device:
    """The GPU of this process by its LOCAL_RANK, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
