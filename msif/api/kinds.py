"""What other stages than plain fine-tuning need besides their factors: adapters, preferences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msif.core import capture, ekfac, files, pairs, preferences, store
from msif.core.adapters import Adapter
from msif.core.digests import tensors_digest
from msif.core.layers import Tracked
from msif.core.objectives import loss
from msif.scale import processes


@dataclass(frozen=True)
class Fitted(ekfac.EKFAC):
    """Factors of a stage of adapters or of preferences.

    mean: D̄ of the adapted layers, the mean gradient of the stage's loss, {layer: (o, i)}. cross:
    Λ× of preferences, {layer: (blocks, r, i)}. Empty where the stage does not need it.
    """

    mean: Mapping[str, Tensor] = field(default_factory=dict)
    cross: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def coupling(self) -> preferences.EigenCross | None:
        """The cross term X of a stage of preferences; None of others."""
        return preferences.EigenCross(self.factors, self.cross) if self.cross else None


def with_mean(
    factors: ekfac.EKFAC,
    tracked: Tracked,
    adapters: Mapping[str, Adapter],
    rows: pairs.Items,
    place: Path | None,
    options: dict[str, Any],
    objective: Callable[..., Tensor] = loss,
) -> Fitted:
    """Factors of a stage of adapters, with the mean gradient of its rows; kept beside `place`, the
    folder of the factors, if there is one. options: batch_size and title."""

    def mean():
        adapted = tracked.only(x for x in tracked.layers if x.name in adapters)
        return capture.mean_gradient(adapted, rows, objective, **options)

    cross = factors.cross if isinstance(factors, Fitted) else {}
    return Fitted(factors.factors, factors.header, _kept(place, "mean", mean), cross)


def of_preferences(
    end: Tracked,
    start: Tracked,
    items: list[pairs.Pair],
    b: float,
    place: Path | None,
    options: dict[str, Any],
) -> Fitted:
    """Factors of a stage of preferences, in memory; kept in `place`, if there is one."""
    found: list[preferences.Preferences] = []

    def fitted():
        if not found:
            found.append(preferences.fit(end, start, items, b=b, **options))
        return found[0]

    cross = _kept(place, "cross", lambda: dict(fitted().cross.values))
    if place is None or not (place / "header.json").exists():
        factors = fitted().curvature
        if place is not None and processes.rank_and_size()[0] == 0:
            store.save(factors, place)
    else:
        factors = store.load(place, end)
        _same_header(place, factors.header, preferences.header(end, start, items, b))
    processes.barrier()
    return Fitted(factors.factors, factors.header, cross=cross)


def _same_header(place, found, asked):
    """FactorsError if the factors in a folder were made of other things."""
    other = [x for x in ("labels", "model", "start", "data", "b") if found.get(x) != asked[x]]
    if other:
        raise store.FactorsError(
            f"{place} holds factors with another {' and '.join(other)} ({found.get(other[0])!r} "
            f"there, {asked[other[0]]!r} asked for): choose another folder, or remove it"
        )


def read_beside(factors: ekfac.EKFAC, place: Path) -> ekfac.EKFAC:
    """Factors from a folder, with what a stage of adapters or preferences has left beside them.

    Raises FactorsError for preferences without their cross term: another function of the same H.
    """
    found = {
        what: files.load(beside(place, what), of=place.name)[0]
        for what in ("mean", "cross")
        if beside(place, what).exists()
    }
    if of_pairs(factors) and not found.get("cross"):
        raise store.FactorsError(
            f"{place} holds factors of preferences, and {beside(place, 'cross')} with their cross "
            f"term is missing: put it back (it lies beside the folder, and both keep the names "
            f"that `msif.fit` gave them), or fit them again"
        )
    return Fitted(factors.factors, factors.header, **found) if found else factors


def of_pairs(factors: ekfac.EKFAC) -> bool:
    """Were the factors fitted on preferences, so that a stage needs their cross term?"""
    return factors.header.get("labels") == preferences.LABELS


def adapters_digest(adapters: Mapping[str, Adapter]) -> str:
    """sha256 (hex) of adapters: the same sum of weights can come of others."""
    sides = {f"{name} {x.scale}": torch.cat([x.A.mT, x.B]) for name, x in adapters.items()}
    return tensors_digest(sides)


def key_of(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """What the name of a stage's factors also depends on: the mean gradient beside them is of the
    adapted layers, and models of equal weights may have adapters on others. {} without adapters."""
    return {"adapted": sorted(adapters)} if adapters else {}


def beside(place: Path, what: str) -> Path:
    """The file of what factors in a folder need besides."""
    return place.with_name(f"{what}-{place.name}.safetensors")


def _kept(place, what, make):
    """{layer: tensor} of a file beside the factors, made once."""
    if place is None:
        return make()
    path = beside(place, what)
    if not path.exists() and processes.rank_and_size()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(path, make(), of=place.name)
    processes.barrier()
    return files.load(path, of=place.name)[0]
