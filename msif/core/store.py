"""Factors on disk: a folder with one safetensors file per layer and header.json; nothing is ever unpickled.

The header says what the factors belong to (digests of model and data), how they were fitted, and the SHA-256 of every
file, so that factors of another model, of other layers, truncated or tampered with are refused by name.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from msif.core import files
from msif.core.ekfac import EKFAC, LayerFactors
from msif.core.models import model_digest
from msif.core.resources import require

SCHEMA = 1


class FactorsError(ValueError):
    """The stored factors are damaged, or belong to something else."""


def save(factors, folder):
    """Write an `EKFAC` to `folder` as a whole or not at all; an earlier one there is replaced, anything else refused."""
    folder = Path(folder)
    if folder.exists() and not (folder / "header.json").is_file() and any(folder.iterdir()):
        raise FactorsError(
            f"{folder} exists and holds no factors (no header.json): choose another folder, or remove it"
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


def load(folder, tracked=None, in_memory=True):
    """The `EKFAC` of a folder; given a tracked model, refuse factors that are not theirs (FactorsError says why).

    in_memory: read all layers now; else each is read, checked and let go of whenever it is asked for, in the memory of one layer."""
    folder = Path(folder)
    header = read_header(folder)
    stored = header.pop("layers")
    if tracked is not None:
        check_layers(folder, stored, tracked.layers)
    if tracked is not None and model_digest(tracked.model) != header["model"]:
        raise FactorsError(
            f"{folder}: fitted on a model with digest {header['model'][:12]}…, but this model's digest is "
            f"{model_digest(tracked.model)[:12]}…: its weights differ. Load that model, or fit again."
        )
    found = LayerFiles(
        {name: folder / x["file"] for name, x in stored.items()},
        {name: x["sha256"] for name, x in stored.items()},
    )
    loaded = EKFAC(dict(found) if in_memory else found, header)
    for layer in tracked.layers if tracked is not None and in_memory else ():
        _check_shape(folder, layer, loaded.factors[layer.name])
    return loaded


class LayerFiles(Mapping):
    """{layer name: LayerFactors} read from one file a layer, each time that it is asked for; with its SHA-256, checked."""

    def __init__(self, paths, sha256=None):
        self.paths, self.sha256 = paths, sha256 or {}

    def __getitem__(self, name):
        path = self.paths[name]
        if name in self.sha256:
            _check_file(path, self.sha256[name])
        return LayerFactors(**{"rows": None, **safetensors.torch.load_file(path)})

    def __iter__(self):
        return iter(self.paths)

    def __len__(self):
        return len(self.paths)


def read_header(folder):
    """header.json of a folder of factors, less its own SHA-256; FactorsError unless it is there, whole and of this version."""
    path = folder / "header.json"
    if not path.exists():
        raise FactorsError(
            f"{folder}: no header.json there; expected a folder written by msif.core.store.save"
        )
    try:
        header = json.loads(path.read_text())
        missing = {
            "schema",
            "layers",
            "model",
            "data",
            "sequences",
            "tokens",
            "sha256",
        } - header.keys()
    except (ValueError, AttributeError) as error:
        raise FactorsError(f"{path}: not a JSON object ({error}); fit the factors again") from error
    if missing or header["schema"] != SCHEMA:
        raise FactorsError(
            f"{path}: schema {header.get('schema')} lacking {sorted(missing)}; this version reads schema {SCHEMA}"
        )
    if header.pop("sha256") != files.sha256_of(header):
        raise FactorsError(
            f"{path}: changed since it was written (SHA-256 differs); fit the factors again"
        )
    return header


def check_layers(folder, stored, layers):
    """FactorsError unless the folder's layers (by name) are these."""
    wanted = {layer.name for layer in layers}
    if wanted != set(stored):
        raise FactorsError(
            f"{folder}: fitted on other layers; only in the file: {sorted(set(stored) - wanted)}, "
            f"only asked for: {sorted(wanted - set(stored))}"
        )


def _check_shape(folder, layer, found):
    rows = (1, layer.out_features) if layer.rows is None else tuple(layer.rows.shape)
    expected = (*rows, layer.in_features + layer.bias)
    if tuple(found.eigenvalues.shape) != expected:
        raise FactorsError(
            f"{folder}: {layer.name} has eigenvalues of shape {tuple(found.eigenvalues.shape)} (blocks, rows, "
            f"inputs), but this layer needs {expected}: another width or another per-head setting"
        )
    if layer.rows is not None and not torch.equal(found.rows, layer.rows):
        raise FactorsError(
            f"{folder}: {layer.name} was fitted with other output rows in its heads; fit the factors again"
        )


def _check_file(path, sha256):
    if not path.is_file():
        raise FactorsError(f"{path}: missing, though header.json names it; fit the factors again")
    if files.sha256_of_file(path) != sha256:
        raise FactorsError(
            f"{path}: truncated or changed since it was written (SHA-256 differs); fit the factors again"
        )


def tensors_of(layer):
    """{field: tensor on the CPU} of `LayerFactors`, as files hold them."""
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: x.contiguous().cpu() for name, x in found.items() if x is not None}


def _size(factors):
    return sum(x.nbytes for layer in factors.factors.values() for x in tensors_of(layer).values())
