"""Fit EK-FAC factors into a folder: planned for a memory budget, checkpointed, over one process or
many.

The numbers are those of `ekfac.fit`; this is for models and data that take hours. One partition of
the layers at a time:

    covariances (a pass over the data, checkpointed) -> one file of eigenbases a layer
    -> eigenvalues (a pass, checkpointed) -> one file of finished factors a layer.

Killed at any point, the same call goes on from its last checkpoint, to the same bits on the same
machine with as many processes: sums are stored as they stand and batches follow in one order. Every
file of the work carries a digest of all that the work depends on, and says which process of how
many wrote it: sums and what is kept of batches are read by that one alone.

With several processes (see `msif.scale.processes`), process k takes every k-th batch and every k-th
decomposition, and sums are added over processes; one that has no batch adds zeros. Another number
of processes is another order of addition. A and B are added in float64 (`msif.core.sums`), so that
their eigenvectors, which follow the last digits, come out the same; Λ is added in the model's
precision, which moves scores by less than 1e-6 of their norm in float32 (as tested, with damping
1e-3). `ekfac.fit` adds the same numbers: its bases are the same to the bit, its Λ to rounding.
"""

from pathlib import Path

from msif.core import checks, ekfac, files, store
from msif.core.capture import groups
from msif.core.data import Sequence, check, digest
from msif.core.digests import layers_key
from msif.core.layers import Tracked, refuse_without_gradients
from msif.core.model_digest import model_digest
from msif.core.models import limits
from msif.core.objectives import fisher_losses
from msif.core.resources import require
from msif.core.spent import share_said
from msif.scale import processes
from msif.scale.partition import Partition, stored
from msif.scale.plan import plan_fit
from msif.scale.sizes import parse_bytes


def fit(
    folder: str | Path,
    tracked: Tracked,
    sequences: list[Sequence],
    *,
    labels: str = "gaussian",
    samples: int = 2,
    seed: int | str = 0,
    batch_size: int = 32,
    memory: int | str | None = None,
    keep: int | str = 0,
    every: float = 60.0,
    title: str | None = None,
) -> ekfac.EKFAC:
    """Fit the factors of the tracked layers on `sequences` into `folder`, and return them, each
    layer read when it is asked for (`store.load`).

    labels, samples, seed and batch_size as in `ekfac.fit`. memory: bytes, "16GiB" or None for what
    is free; it decides how many partitions the layers go in. keep: bytes of disk, or "16GiB", for
    the a and g of the covariance pass, so that the eigenvalue pass reads them in place of running
    the model, shared by all processes: worth it where disks outrun arithmetic, as on CPUs. every:
    seconds between checkpoints. title: of the plan that is printed and of the progress bars (None:
    silent). A folder that holds these very factors is returned as it is.

    Raises, before any pass, ValueError for unreadable sequences or for a folder with other factors
    or other unfinished work in it, MemoryError or OSError where memory or disk will not do,
    `files.Busy` while another run writes there.
    """
    refuse_without_gradients(tracked)
    seed = checks.seed(seed)
    folder, objectives = Path(folder).absolute(), fisher_losses(labels, samples, seed)
    keep = 0 if keep == 0 else parse_bytes(keep, "keep")
    batch_size = checks.whole("batch_size", batch_size)
    checks.whole("the number of tracked layers", len(tracked.layers))
    check(sequences, *limits(tracked.model))
    store.claim(folder)
    key = {
        "model": model_digest(tracked.model),
        "data": digest(sequences),
        "layers": layers_key(tracked.layers),
        "labels": labels,
        "samples": len(objectives),
        "seed": seed,
        "batch_size": batch_size,
    }
    lengths = [len(x.input_ids) for x in sequences]
    plan = plan_fit(tracked, lengths, batch_size=batch_size, draws=len(objectives), memory=memory)
    rank, size = processes.rank_and_size()
    work = folder.with_name(f".{folder.name}.work")
    with files.exclusive(work / f"rank{rank}"):
        if not _there(folder, key):
            if title and rank == 0:
                print(f"{title}: {plan}", flush=True)
            kept = _kept_bytes(tracked, sequences, batch_size, len(objectives))
            _begin(work, key, plan, min(keep, kept), rank)
            with share_said(tracked.model, title if rank == 0 else None, "fit"):
                for number, part in enumerate(plan.partitions, 1):
                    Partition(
                        work,
                        files.sha256_of(key),
                        tracked.only(part.layers),
                        sequences,
                        objectives,
                        batch_size,
                        keep // size,
                        every,
                        title and f"{title} {number}/{len(plan.partitions)}",
                    ).run()
            if rank == 0:
                factors = stored(work, tracked.layers, "factors", files.sha256_of(key))
                header = ekfac.header(tracked, sequences, labels, len(objectives), seed)
                store.save(ekfac.EKFAC(factors, {**header, "processes": size}), folder)
        processes.barrier()
        if rank == 0:
            _clear(work)
    return store.load(folder, tracked, in_memory=False)


def _there(folder, key):
    """Are the factors finished? FactorsError if what is there are others."""
    if not (folder / "header.json").exists():
        return False
    found = store.read_header(folder)
    compared = ("model", "data", "labels", "samples", "seed")
    other = [name for name in compared if found[name] != key[name]]
    if other:
        raise store.FactorsError(
            f"{folder} holds factors with another {' and '.join(other)} "
            f"({found[other[0]]!r} there, {key[other[0]]!r} asked for): "
            f"choose another folder, or remove it"
        )
    return True


def _begin(work, key, plan, keep, rank):
    """Claim the work's folder, with room on its disk; no process goes on before that is done."""
    if rank == 0:
        files.sweep(work)
        files.same_work(work, key)
        done = sum(x.stat().st_size for x in work.glob("*.safetensors"))
        what = f"fitting {plan.parameters:,} parameters"
        require(disk=max(0, plan.disk + keep - done), folder=work, what=what)
    processes.barrier()


def _kept_bytes(tracked, sequences, batch_size, draws):
    """Bytes of the a and g of all batches, padded: what `keep` can come to."""
    batches = groups(tracked, sequences, batch_size)
    positions = sum(len(x) * max(len(sequences[n].input_ids) for n in x) for x in batches)
    width = sum(x.in_features + draws * x.out_features for x in tracked.layers)
    return positions * width * next(tracked.model.parameters()).element_size()


def _clear(work):
    """Leave nothing but the locks."""
    files.sweep(work)
    for path in (*work.glob("*.safetensors"), work / "work.json"):
        path.unlink(missing_ok=True)
