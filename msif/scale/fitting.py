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
of processes is another order of addition. A and B are added in float64 (`msif.scale.sums`), so that
their eigenvectors, which follow the last digits, come out the same; Λ is added in the model's
precision, which moves scores by less than 1e-6 of their norm in float32 (as tested, with damping
1e-3). `ekfac.fit` adds everything in the model's precision: its scores differ by up to 1e-4.
"""

import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from msif.core import checks, ekfac, files, store
from msif.core.capture import backpropagate, frozen, groups
from msif.core.data import Sequence, check, collate, digest
from msif.core.digests import layers_key
from msif.core.layers import Tracked
from msif.core.models import limits, model_digest
from msif.core.objectives import fisher_losses
from msif.core.products import aligned
from msif.core.resources import require, return_memory
from msif.scale import processes, sums
from msif.scale.plan import plan_fit
from msif.scale.sizes import parse_bytes


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
    the model, shared by all processes: worth it where disks outrun arithmetic, as on CPUs. every:
    seconds between checkpoints. title: of the plan that is printed and of the progress bars (None:
    silent). A folder that holds these very factors is returned as it is.

    Raises, before any pass, ValueError for unreadable sequences or for a folder with other factors
    or other unfinished work in it, MemoryError or OSError where memory or disk will not do,
    `files.Busy` while another run writes there.
    """
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
            for number, partition in enumerate(plan.partitions, 1):
                _Fit(
                    work,
                    files.sha256_of(key),
                    tracked.only(partition.layers),
                    sequences,
                    objectives,
                    batch_size,
                    keep // size,
                    every,
                    title and f"{title} {number}/{len(plan.partitions)}",
                ).run()
            if rank == 0:
                factors = _stored(work, tracked.layers, "factors", files.sha256_of(key))
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


def _file(work, layer, kind):
    return work / f"{layer.name}.{kind}.safetensors"


def _stored(work, layers, kind, key):
    """The layers' "bases" or "factors" that lie in `work`, read when they are asked for."""

    def read(layer):
        return files.load(_file(work, layer, kind), work=key)[0]

    return store.LayerFiles({x.name: partial(read, x) for x in layers})


def _clear(work):
    """Leave nothing but the locks."""
    files.sweep(work)
    for path in (*work.glob("*.safetensors"), work / "work.json"):
        path.unlink(missing_ok=True)


class _Fit:
    """One partition: its two passes and what lies between and after them."""

    def __init__(self, work, key, tracked, sequences, objectives, batch_size, keep, every, title):
        self.work = work
        self.process = "{}of{}".format(*processes.rank_and_size())
        self.stamp = {"work": key, "process": self.process}
        self.tracked = tracked
        self.sequences = sequences
        self.objectives = objectives
        self.batches = processes.share(groups(tracked, sequences, batch_size))
        before = work.glob(f"kept.{self.process}.*")
        self.keep = keep - sum(x.stat().st_size for x in before)  # bytes left for a and g
        self.every = every
        self.title = title
        self.count = len(sequences) * len(objectives)

    def run(self):
        layers = self.tracked.layers
        if not self._all("factors"):
            if not self._all("bases"):
                covariances = self._pass("covariances", sums.covariance_zeros, sums.add_covariances)
                self._each(self._decomposed(covariances), "bases")
            return_memory()
            bases = _stored(self.work, layers, "bases", self.stamp["work"])
            rotations = {
                x.name: _rotation(bases[x.name].to(_device(self.tracked.model, x))) for x in layers
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
            files.save(_file(self.work, layer, kind), store.tensors_of(factors), **self.stamp)
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
        names, last = [x.name for x in self.tracked.layers], time.monotonic()
        found, done = {}, 0
        for layer in self.tracked.layers:
            found |= zeros(self.tracked.model, layer)
        path = self.work / f"sums.{names[0]}.{kind}.{self.process}.safetensors"
        before, state = files.load(path, **self.stamp)
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
                    files.save(path, found, batches=number, layers=names, **self.stamp)
                    last = time.monotonic()
        processes.barrier()
        processes.add_over_processes(found)
        return_memory()
        return found

    def _batch(self, kind, number, batch, consume):
        """One batch through the model, or from what is kept of it."""
        dtype = next(self.tracked.model.parameters()).dtype
        kept = {
            (x.name, draw): self.work / f"kept.{self.process}.{number}.{x.name}.{draw}.safetensors"
            for x in self.tracked.layers
            for draw in range(len(self.objectives))
        }
        if kind == "eigenvalues" and all(path.exists() for path in kept.values()):
            return self._read(kept, consume)

        def keeping(layer, a, g, draw):
            path = kept[layer.name, draw]
            if not path.exists():
                found = {"g": g.to(dtype)} | ({"a": a.to(dtype)} if draw == 0 else {})
                self.keep -= sum(x.nbytes for x in found.values())
                if self.keep >= 0:
                    files.save(path, found, durable=False, **self.stamp)
            consume(layer, a, g, draw)

        keeps = kind == "covariances" and self.keep > 0
        backpropagate(self.tracked, batch, self.objectives, keeping if keeps else consume)

    def _read(self, kept, consume):
        for layer in self.tracked.layers:
            device = _device(self.tracked.model, layer)
            a = None  # kept once, with the first draw
            for draw in range(len(self.objectives)):
                found = {
                    name: x.to(device, torch.promote_types(x.dtype, torch.float32))
                    for name, x in files.load(kept[layer.name, draw], **self.stamp)[0].items()
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


def _rotation(factors):
    # Copies: what was read of a file holds on to the pages of all of it.
    return aligned(factors.basis_in).clone(), factors.basis_out.clone()


def _device(model, layer):
    """Where a layer's weight lies."""
    return model.get_parameter(layer.parameter).device
