"""Fit EK-FAC factors into a folder: planned for a memory budget, checkpointed, over one process or
many.

The numbers are those of `ekfac.fit`; this is for models and data that take hours. One partition of
the layers at a time:

    covariances (a pass over the data, checkpointed) -> one file of eigenbases a layer
    -> eigenvalues (a pass, checkpointed) -> one file of finished factors a layer.

Killed at any point, the same call goes on from its last checkpoint, to the same bits on the same
machine with as many processes: sums are stored as they stand and batches follow in one order.

With several processes (see `msif.scale.processes`), process k takes every k-th batch and every k-th
decomposition, and sums are added over processes; one that has no batch adds zeros. Another number
of processes is another order of addition. A and B are added in float64 (`msif.scale.sums`), so that
their eigenvectors, which follow the last digits, come out the same; Λ is added in the model's
precision, which moves scores by less than 1e-6 of their norm in float32 (as tested, with damping
1e-3). `ekfac.fit` adds everything in the model's precision: its scores differ by up to 1e-4.
"""

import contextlib
import ctypes
import time
from pathlib import Path

import torch
from tqdm import tqdm

from msif.core import ekfac, files, store
from msif.core.capture import backpropagate, frozen
from msif.core.data import Sequence, buckets, check, collate, digest
from msif.core.layers import Tracked
from msif.core.models import limits, model_digest
from msif.core.objectives import fisher_losses
from msif.core.products import aligned
from msif.core.resources import require
from msif.scale import processes, sums
from msif.scale.plan import parse_bytes, plan_fit


def fit(
    folder: str | Path,
    tracked: Tracked,
    sequences: list[Sequence],
    *,
    labels: str = "gaussian",
    samples: int = 2,
    seed: int = 0,
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
    the model: worth it where disks outrun arithmetic, as on CPUs. every: seconds between
    checkpoints. title: of the plan that is printed and of the progress bars (None: silent). A
    folder that holds these very factors is returned as it is.

    Raises, before any pass, ValueError for unreadable sequences or for a folder with other factors
    or other unfinished work in it, MemoryError or OSError where memory or disk will not do,
    `files.Busy` while another run writes there.
    """
    folder, objectives = Path(folder), fisher_losses(labels, samples, seed)
    check(sequences, *limits(tracked.model))
    key = {
        "model": model_digest(tracked.model),
        "data": digest(sequences),
        "layers": [str(x) for x in tracked.layers],
        "labels": labels,
        "samples": len(objectives),
        "seed": seed,
        "batch_size": batch_size,
    }
    lengths = [len(x.input_ids) for x in sequences]
    plan = plan_fit(tracked, lengths, batch_size=batch_size, draws=len(objectives), memory=memory)
    rank = processes.rank_and_size()[0]
    work = folder.with_name(f".{folder.name}.work")
    with files.exclusive(work / f"rank{rank}"):
        if not _there(folder, key):
            if title and rank == 0:
                print(f"{title}: {plan}", flush=True)
            _begin(work, key, plan, rank)
            for number, partition in enumerate(plan.partitions, 1):
                _Fit(
                    work,
                    tracked.only(partition.layers),
                    sequences,
                    objectives,
                    batch_size,
                    parse_bytes(keep) if keep else 0,
                    every,
                    title and f"{title} {number}/{len(plan.partitions)}",
                ).run()
            if rank == 0:
                factors = _stored(work, tracked.layers, "factors")
                header = ekfac.header(tracked.model, sequences, labels, len(objectives), seed)
                store.save(ekfac.EKFAC(factors, header), folder)
                _clear(work)
        processes.barrier()
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


def _begin(work, key, plan, rank):
    """Claim the work's folder, with room on its disk; no process goes on before that is done."""
    if rank == 0:
        files.same_work(work, key)
        done = sum(x.stat().st_size for x in work.glob("*.safetensors"))
        what = f"fitting {plan.parameters:,} parameters"
        require(disk=max(0, plan.disk - done), folder=work, what=what)
    processes.barrier()


def _file(work, layer, kind):
    return work / f"{layer.name}.{kind}.safetensors"


def _stored(work, layers, kind):
    """The layers' "bases" or "factors" that lie in `work`, read when they are asked for."""
    return store.LayerFiles({x.name: _file(work, x, kind) for x in layers})


def _clear(work):
    """Leave nothing but the locks."""
    for path in (*work.glob("*.safetensors"), work / "work.json"):
        path.unlink(missing_ok=True)


class _Fit:
    """One partition: its two passes and what lies between and after them."""

    def __init__(self, work, tracked, sequences, objectives, batch_size, keep, every, title):
        self.work = work
        self.tracked = tracked
        self.sequences = sequences
        self.objectives = objectives
        self.batches = processes.share(buckets(sequences, batch_size))
        self.keep = keep  # bytes of disk that are left for a and g
        self.every = every
        self.title = title
        self.count = len(sequences) * len(objectives)

    def run(self):
        layers = self.tracked.layers
        if not self._all("factors"):
            if not self._all("bases"):
                covariances = self._pass("covariances", sums.covariance_zeros, sums.add_covariances)
                self._each(self._decomposed(covariances), "bases")
            _return_memory()
            bases = _stored(self.work, layers, "bases")
            rotations = {
                x.name: _rotation(bases[x.name].to(_device(self.tracked.model, x.name)))
                for x in layers
            }
            squares = self._pass(
                "eigenvalues",
                sums.eigenvalue_zeros,
                lambda found, *rest: ekfac.add_eigenvalues(found, rotations, *rest),
            )
            finished = (
                (x, ekfac.mean_eigenvalues(squares, [x], bases, self.count)[x.name])
                for x in processes.share(layers)
            )
            self._each(finished, "factors")
        if processes.rank_and_size()[0] == 0:
            passing = (*self.work.glob("sums.*"), *self.work.glob("kept.*"))
            for path in (*passing, *(_file(self.work, x, "bases") for x in layers)):
                path.unlink(missing_ok=True)
        processes.barrier()

    def _all(self, kind):
        """Is this file there for every layer? All processes answer before any goes on to write."""
        found = all(_file(self.work, x, kind).exists() for x in self.tracked.layers)
        processes.barrier()
        return found

    def _each(self, found, kind):
        """Write one file a layer, and wait until every process has."""
        for layer, factors in found:
            files.save(_file(self.work, layer, kind), store.tensors_of(factors))
        processes.barrier()

    def _decomposed(self, found):
        """(layer, its eigenbases) of this process's layers; each layer's sums are let go of as it
        is done."""
        whats, model = ("A", "B", "positions"), self.tracked.model
        mine = [
            x
            for x in processes.share(self.tracked.layers)
            if not _file(self.work, x, "bases").exists()
        ]
        for name in set(found) - {f"{x.name}.{what}" for x in mine for what in whats}:
            del found[name]
        desc = self.title and f"{self.title}: decompositions"
        for layer in tqdm(mine, desc=desc, disable=self.title is None):
            whole = sums.unpacked(found, [layer], sums.precision(model))
            for what in whats:
                del found[f"{layer.name}.{what}"]
            count = len(self.sequences), len(self.objectives)
            means = ekfac.mean_covariances(whole, [layer], *count)
            del whole
            yield layer, ekfac.eigenbases(*means[layer.name])

    def _pass(self, kind, zeros, add):
        """Sums over all batches of all processes: {name: tensor}. They start at zeros(model, layer)
        of each layer, and grow by add(sums, layer, a, g, draw, batch).

        Checkpoints on the way, and goes on from one that is there."""
        rank, size = processes.rank_and_size()
        names, last = [x.name for x in self.tracked.layers], time.monotonic()
        found, done = {}, 0
        for layer in self.tracked.layers:
            found |= zeros(self.tracked.model, layer)
        path = self.work / f"sums.{names[0]}.{kind}.{rank}of{size}.safetensors"
        before, state = files.load(path)
        if state.get("layers") == names:  # else none, or of another partition
            done = state["batches"]
            for name, x in before.items():
                found[name].copy_(x)
        del before
        with frozen(self.tracked.model), self._progress(kind, done) as progress:
            for number, group in enumerate(self.batches[done:], done + 1):
                batch = collate([self.sequences[n] for n in group])
                self._batch(kind, number, batch, lambda *seen: add(found, *seen, batch))
                progress.update(int(batch.attention_mask.sum()))
                if number == len(self.batches) or time.monotonic() - last >= self.every:
                    files.save(path, found, batches=number, layers=names)
                    last = time.monotonic()
        processes.barrier()
        processes.add_over_processes(found)
        return found

    def _batch(self, kind, number, batch, consume):
        """One batch through the model, or from what is kept of it."""
        rank, dtype = processes.rank_and_size()[0], next(self.tracked.model.parameters()).dtype
        kept = {
            (x.name, draw): self.work / f"kept.{rank}.{number}.{x.name}.{draw}.safetensors"
            for x in self.tracked.layers
            for draw in range(len(self.objectives))
        }
        if kind == "eigenvalues" and all(path.exists() for path in kept.values()):
            return self._read(kept, consume)

        def keeping(layer, a, g, draw):
            found = {"g": g.to(dtype)} | ({"a": a.to(dtype)} if draw == 0 else {})
            self.keep -= sum(x.nbytes for x in found.values())
            if self.keep >= 0:
                files.save(kept[layer.name, draw], found, durable=False)
            consume(layer, a, g, draw)

        keeps = kind == "covariances" and self.keep > 0
        backpropagate(self.tracked, batch, self.objectives, keeping if keeps else consume)

    def _read(self, kept, consume):
        for layer in self.tracked.layers:
            device = _device(self.tracked.model, layer.name)
            a = None  # kept once, with the first draw
            for draw in range(len(self.objectives)):
                found = {
                    name: x.to(device, torch.promote_types(x.dtype, torch.float32))
                    for name, x in files.load(kept[layer.name, draw])[0].items()
                }
                a = found.get("a", a)
                consume(layer, a, found["g"], draw)

    def _progress(self, kind, done):
        tokens = [sum(len(self.sequences[n].input_ids) for n in group) for group in self.batches]
        return tqdm(
            total=sum(tokens),
            initial=sum(tokens[:done]),
            unit=" tokens",
            unit_scale=True,
            desc=self.title and f"{self.title}: {kind}",
            disable=self.title is None,
        )


def _return_memory():
    """Freed memory back to the system, from which glibc's allocator holds it; without glibc there
    is nothing to do."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _rotation(factors):
    return aligned(factors.basis_in), factors.basis_out


def _device(model, name):
    """Where a layer's weight lies."""
    return model.get_submodule(name).weight.device
