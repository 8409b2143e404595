"""Factors on disk: a folder with one safetensors file per layer and header.json.

Nothing is ever unpickled. The header says what the factors belong to (digests of model and data),
how they were fitted, and the SHA-256 of every file, so that factors of another model, of other
layers, truncated or tampered with are refused by name.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from msif.core import files
from msif.core.kronecker import EKFAC, LayerFactors, block_shape
from msif.core.layers import Layer, Tracked
from msif.core.models import model_digest
from msif.core.resources import require

SCHEMA = 1
REQUIRED = {"schema", "layers", "model", "data", "sequences", "tokens", "sha256"}


class FactorsError(ValueError):
    """The stored factors are damaged, or belong to something else."""


def save(factors: EKFAC, folder: str | Path) -> None:
    """Write an `EKFAC` to `folder` as a whole or not at all; an earlier one there is replaced.

    Raises FactorsError if anything else is there, OSError if the disk has no room.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "header.json").is_file() and any(folder.iterdir()):
        raise FactorsError(
            f"{folder} exists and holds no factors (no header.json): choose another folder, or "
            f"remove it"
        )
    require(disk=2 * _size(factors), folder=folder, what=f"saving factors to {folder}")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    written = {}
    for number, (name, layer) in enumerate(factors.factors.items()):
        path = partial / f"{number:04d}.safetensors"
        safetensors.torch.save_file(tensors_of(layer), path)
        written[name] = {"file": path.name, "sha256": files.sha256_of_file(path)}
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    header = {"schema": SCHEMA, **factors.header, "versions": versions, "layers": written}
    files.write_json(partial / "header.json", {**header, "sha256": files.sha256_of(header)})
    _swap(partial, folder)


def _swap(new, folder):
    """Put `new` in place of `folder`; if that fails, the old one is back where it was."""
    old = new.with_suffix(".old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(folder: str | Path, tracked: Tracked | None = None, in_memory: bool = True) -> EKFAC:
    """The `EKFAC` of a folder.

    tracked: refuse factors that are not those of this model and layers; FactorsError says why.
    in_memory: read all layers now; else each is read, checked and let go of whenever it is asked
    for, in the memory of one layer.
    """
    folder = Path(folder)
    header = read_header(folder)
    stored = header.pop("layers")
    if tracked is not None:
        check_layers(folder, stored, tracked.layers)
        _check_model(folder, header["model"], model_digest(tracked.model))
    found = LayerFiles(
        {name: folder / x["file"] for name, x in stored.items()},
        {name: x["sha256"] for name, x in stored.items()},
    )
    loaded = EKFAC(dict(found) if in_memory else found, header)
    for layer in tracked.layers if tracked is not None and in_memory else ():
        _check_shape(folder, layer, loaded.factors[layer.name])
    return loaded


class LayerFiles(Mapping[str, LayerFactors]):
    """{layer name: LayerFactors} read from one file a layer, each time that it is asked for.

    paths: {layer name: path}. sha256: {layer name: hex}; a file that has one is checked, and
    FactorsError raised for one that is missing or changed.
    """

    def __init__(self, paths: dict[str, Path], sha256: dict[str, str] | None = None):
        self.paths, self.sha256 = paths, sha256 or {}

    def __getitem__(self, name: str) -> LayerFactors:
        path = self.paths[name]
        if name in self.sha256:
            _check_file(path, self.sha256[name])
        tensors: dict[str, Any] = {"rows": None, **safetensors.torch.load_file(path)}
        return LayerFactors(**tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def read_header(folder: Path) -> dict[str, Any]:
    """header.json of a folder of factors, less its own SHA-256.

    Raises FactorsError unless it is there, whole and of this version.
    """
    path = folder / "header.json"
    if not path.exists():
        raise FactorsError(
            f"{folder}: no header.json there; expected a folder written by msif.core.store.save"
        )
    try:
        header = json.loads(path.read_text())
        missing = REQUIRED - header.keys()
    except (ValueError, AttributeError) as error:
        raise FactorsError(f"{path}: not a JSON object ({error}); fit the factors again") from error
    if missing or header["schema"] != SCHEMA:
        raise FactorsError(
            f"{path}: schema {header.get('schema')} lacking {sorted(missing)}; this version reads "
            f"schema {SCHEMA}"
        )
    if header.pop("sha256") != files.sha256_of(header):
        raise FactorsError(
            f"{path}: changed since it was written (SHA-256 differs); fit the factors again"
        )
    return header


def check_layers(folder: Path, stored: Collection[str], layers: Iterable[Layer]) -> None:
    """FactorsError unless the folder's layers (by name) are these."""
    wanted = {layer.name for layer in layers}
    if wanted != set(stored):
        raise FactorsError(
            f"{folder}: fitted on other layers; only in the file: {sorted(set(stored) - wanted)}, "
            f"only asked for: {sorted(wanted - set(stored))}"
        )


def _check_model(folder, fitted, digest):
    if fitted != digest:
        raise FactorsError(
            f"{folder}: fitted on a model with digest {fitted[:12]}…, but this model's digest is "
            f"{digest[:12]}…: its weights differ. Load that model, or fit again."
        )


def _check_shape(folder, layer, found):
    shape, expected = tuple(found.eigenvalues.shape), (*block_shape(layer), layer.inputs)
    if shape != expected:
        raise FactorsError(
            f"{folder}: {layer.name} has eigenvalues of shape {shape} (blocks, rows, inputs), but "
            f"this layer needs {expected}: another width or another per-head setting"
        )
    if layer.rows is not None and not torch.equal(found.rows, layer.rows):
        raise FactorsError(
            f"{folder}: {layer.name} was fitted with other output rows in its heads; fit the "
            f"factors again"
        )


def _check_file(path, sha256):
    if not path.is_file():
        raise FactorsError(f"{path}: missing, though header.json names it; fit the factors again")
    if files.sha256_of_file(path) != sha256:
        raise FactorsError(
            f"{path}: truncated or changed since it was written (SHA-256 differs); fit the factors "
            f"again"
        )


def tensors_of(layer: LayerFactors) -> dict[str, Tensor]:
    """{field: tensor on the CPU} of `LayerFactors`, as files hold them."""
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: x.contiguous().cpu() for name, x in found.items() if x is not None}


def _size(factors):
    return sum(x.nbytes for layer in factors.factors.values() for x in tensors_of(layer).values())
