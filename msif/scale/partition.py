"""One partition of the layers of a fit into a folder: its two passes, and what lies around them.

`msif.scale.fitting` says what is kept, and for whom.
"""

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from msif.core import ekfac, files, store, sums
from msif.core.audit import audited, looked_at
from msif.core.capture import backpropagate, frozen, groups
from msif.core.data import Sequence, collate
from msif.core.layers import Layer, Tracked
from msif.core.objectives import Objective
from msif.core.products import aligned
from msif.core.resources import return_memory
from msif.scale import processes


class Partition:
    """One partition: its two passes and what lies between and after them."""

    def __init__(
        self,
        work: Path,
        key: str,
        tracked: Tracked,
        sequences: list[Sequence],
        objectives: list[Objective],
        batch_size: int,
        keep: int,
        every: float,
        title: str | None,
    ):
        self.work = work
        self.process = "{}of{}".format(*processes.rank_and_size())
        self.stamp = {"work": key, "process": self.process}
        self.tracked = tracked
        self.sequences = sequences
        self.objectives = objectives
        self.batches = processes.share(groups(tracked, sequences, batch_size))
        self.looked_at = looked_at(self.batches)
        before = work.glob(f"kept.{self.process}.*")
        self.keep = keep - sum(x.stat().st_size for x in before)  # bytes left for a and g
        self.every = every
        self.title = title
        self.count = len(sequences) * len(objectives)

    def run(self) -> None:
        """Leave one file of finished factors a layer; go on from what is there."""
        layers = self.tracked.layers
        if not self._all("factors"):
            if not self._all("bases"):
                covariances = self._pass("covariances", sums.covariance_zeros, sums.add_covariances)
                self._each(self._decomposed(covariances), "bases")
            return_memory()
            bases = stored(self.work, layers, "bases", self.stamp["work"])
            rotations = {
                x.name: _rotation(bases[x.name].to(_device(self.tracked.model, x))) for x in layers
            }
            squares = self._pass(
                "eigenvalues",
                sums.eigenvalue_zeros,
                lambda found, *rest: ekfac.add_eigenvalues(found, rotations, *rest),
            )
            ekfac.refuse_rounding(self.tracked, squares)
            finished = (
                (x, ekfac.mean_eigenvalues(squares, [x], bases, self.count)[x.name])
                for x in processes.share(layers)
            )
            self._each(finished, "factors")
        if processes.rank_and_size()[0] == 0:
            passing = (*self.work.glob("sums.*"), *self.work.glob("kept.*"))
            for path in (*passing, *(file_of(self.work, x, "bases") for x in layers)):
                path.unlink(missing_ok=True)
        processes.barrier()

    def _all(self, kind):
        """Is this file there for every layer? All processes answer before any goes on to write."""
        found = all(file_of(self.work, x, kind).exists() for x in self.tracked.layers)
        processes.barrier()
        return found

    def _each(self, found, kind):
        """Write one file a layer, and wait until every process has."""
        for layer, factors in found:
            files.save(file_of(self.work, layer, kind), store.tensors_of(factors), **self.stamp)
        processes.barrier()

    def _decomposed(self, found):
        """(layer, its eigenbases) of this process's layers; each layer's sums are let go of as it
        is done."""
        whats, model = ("A", "B", "positions"), self.tracked.model
        mine = [
            x
            for x in processes.share(self.tracked.layers)
            if not file_of(self.work, x, "bases").exists()
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
                rows = [self.sequences[n] for n in group]
                batch = collate(rows)
                self._batch(kind, number, rows, batch, lambda *seen: add(found, *seen, batch))
                progress.update(int(batch.attention_mask.sum()))
                if number == len(self.batches) or time.monotonic() - last >= self.every:
                    files.save(path, found, batches=number, layers=names, **self.stamp)
                    last = time.monotonic()
        processes.barrier()
        processes.add_over_processes(found)
        return_memory()
        return found

    def _batch(self, kind, number, rows, batch, consume):
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

        keeps, objectives = kind == "covariances" and self.keep > 0, self.objectives
        if number - 1 in self.looked_at:
            objectives = audited(self.tracked, rows, self.looked_at[number - 1], objectives)
        backpropagate(self.tracked, batch, objectives, keeping if keeps else consume)

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


def file_of(work: Path, layer: Layer, kind: str) -> Path:
    """Where a layer's "bases" or "factors" lie while a fit works."""
    return work / f"{layer.name}.{kind}.safetensors"


def stored(work: Path, layers: Iterable[Layer], kind: str, key: str) -> store.LayerFiles:
    """The layers' "bases" or "factors" that lie in `work`, read when they are asked for."""

    def read(layer):
        return files.load(file_of(work, layer, kind), work=key)[0]

    return store.LayerFiles({x.name: partial(read, x) for x in layers})
