"""Factors on disk: a folder with one safetensors file per layer and header.json; nothing is ever unpickled.

The header says what the factors belong to (digests of model and data), how they were fitted, and the SHA-256 of every
file, so that factors of another model, of other layers, truncated or tampered with are refused by name.
"""
import hashlib
import json
import os
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from msif.study import scratch
from msif.core.data import digest
from msif.core.ekfac import EKFAC, LayerFactors, fit
from msif.core.models import model_digest
from msif.core.resources import require

SCHEMA = 1


class FactorsError(ValueError):
    """The stored factors are damaged, or belong to something else."""


def fitted(model, layers, sequences, **settings):
    """(EKFAC, its folder): `ekfac.fit` with these settings, done once and kept in the study's scratch/."""
    key = {"model": model_digest(model), "data": digest(sequences), "layers": [str(layer) for layer in layers], **settings}
    folder = scratch.built("factors", key, lambda folder: save(
        fit(model, layers, sequences, title="factors", **settings), folder / "factors")) / "factors"
    return load(folder, model, layers), folder


def save(factors, folder):
    """Write an `EKFAC` to `folder` as a whole or not at all; an earlier one there is replaced, anything else refused."""
    folder = Path(folder)
    if folder.exists() and not (folder / "header.json").is_file() and any(folder.iterdir()):
        raise FactorsError(f"{folder} exists and holds no factors (no header.json): choose another folder, or remove it")
    require(disk=2 * _size(factors), folder=folder, what=f"saving factors to {folder}")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {}
    for number, (name, layer) in enumerate(factors.factors.items()):
        path = partial / f"{number:04d}.safetensors"
        safetensors.torch.save_file(_tensors(layer), path)
        files[name] = {"file": path.name, "sha256": _sha256(path)}
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    header = {"schema": SCHEMA, **factors.header, "versions": versions, "layers": files}
    (partial / "header.json").write_text(json.dumps({**header, "sha256": _digest(header)}, indent=1) + "\n")
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


def load(folder, model=None, layers=None):
    """Read an `EKFAC`; given a model and tracked layers, refuse factors that are not theirs (FactorsError says why)."""
    folder = Path(folder)
    header = _read_header(folder)
    files = header.pop("layers")
    if layers is not None:
        _check_layers(folder, files, layers)
    if model is not None and model_digest(model) != header["model"]:
        raise FactorsError(f"{folder}: fitted on a model with digest {header['model'][:12]}…, but this model's digest is "
                           f"{model_digest(model)[:12]}…: its weights differ. Load that model, or fit again.")
    loaded = EKFAC({name: _read_layer(folder / entry["file"], entry["sha256"]) for name, entry in files.items()}, header)
    for layer in layers or ():
        _check_shape(folder, layer, loaded.factors[layer.name])
    return loaded


def _read_header(folder):
    path = folder / "header.json"
    if not path.exists():
        raise FactorsError(f"{folder}: no header.json there; expected a folder written by msif.core.factors.save")
    try:
        header = json.loads(path.read_text())
        missing = {"schema", "layers", "model", "data", "sequences", "tokens", "sha256"} - header.keys()
    except (ValueError, AttributeError) as error:
        raise FactorsError(f"{path}: not a JSON object ({error}); fit the factors again") from error
    if missing or header["schema"] != SCHEMA:
        raise FactorsError(f"{path}: schema {header.get('schema')} lacking {sorted(missing)}; this version reads schema {SCHEMA}")
    if header.pop("sha256") != _digest(header):
        raise FactorsError(f"{path}: changed since it was written (SHA-256 differs); fit the factors again")
    return header


def _check_layers(folder, files, layers):
    wanted = {layer.name for layer in layers}
    if wanted != set(files):
        raise FactorsError(f"{folder}: fitted on other layers; only in the file: {sorted(set(files) - wanted)}, "
                           f"only asked for: {sorted(wanted - set(files))}")


def _check_shape(folder, layer, found):
    rows = (1, layer.out_features) if layer.rows is None else tuple(layer.rows.shape)
    expected = (*rows, layer.in_features + layer.bias)
    if tuple(found.eigenvalues.shape) != expected:
        raise FactorsError(f"{folder}: {layer.name} has eigenvalues of shape {tuple(found.eigenvalues.shape)} (blocks, rows, "
                           f"inputs), but this layer needs {expected}: another width or another per-head setting")
    if layer.rows is not None and not torch.equal(found.rows, layer.rows):
        raise FactorsError(f"{folder}: {layer.name} was fitted with other output rows in its heads; fit the factors again")


def _read_layer(path, sha256):
    if not path.is_file():
        raise FactorsError(f"{path}: missing, though header.json names it; fit the factors again")
    if _sha256(path) != sha256:
        raise FactorsError(f"{path}: truncated or changed since it was written (SHA-256 differs); fit the factors again")
    return LayerFactors(**{"rows": None, **safetensors.torch.load_file(path)})


def _tensors(layer):
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: x.contiguous().cpu() for name, x in found.items() if x is not None}


def _size(factors):
    return sum(x.nbytes for layer in factors.factors.values() for x in _tensors(layer).values())


def _digest(header):
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
