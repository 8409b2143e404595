"""Factors on disk: a folder with one safetensors file per layer and header.json.

Nothing is ever unpickled. The header says what the factors belong to (digests of model and data),
how they were fitted, and the SHA-256 of every file, so that factors of another model, of other
layers, truncated or tampered with are refused by name.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from msif.core import files
from msif.core.kronecker import EKFAC, LayerFactors, block_shape
from msif.core.layers import Layer, Tracked
from msif.core.model_digest import model_digest
from msif.core.resources import require

SCHEMA = 1
# What `save` leaves in a folder besides header.json, also where it is killed.
OURS = re.compile(
    r"\.lock|\d{4}(-[0-9a-f]{12})?(\.safetensors)?|\.(\d{4}|header\.json)\.\d+\.partial"
)
REQUIRED = {"schema", "layers", "model", "data", "sequences", "tokens"}


class FactorsError(ValueError):
    """The stored factors are damaged, or belong to something else."""


def save(factors: EKFAC, folder: str | Path) -> None:
    """Write an `EKFAC` to `folder` as a whole or not at all; an earlier one there is replaced.

    The header, written last, names the files, so that one of the two is there at any moment. Raises
    FactorsError if anything else is there (`claim`), and for factors with more than a folder holds;
    OSError if the disk has no room, `files.Busy` while another run writes there.
    """
    folder = Path(folder).absolute()
    _refuse_more(factors)
    claim(folder)
    require(disk=2 * _size(factors), folder=folder, what=f"saving factors to {folder}")
    with files.exclusive(folder):
        try:
            named = {
                name: _write_layer(folder, number, layer)
                for number, (name, layer) in enumerate(factors.factors.items())
            }
            versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
            header = {"schema": SCHEMA, **factors.header, "versions": versions, "layers": named}
            files.write_record(folder / "header.json", header)
        finally:
            _tidy(folder)


def _refuse_more(factors):
    """What a class of factors has besides would be lost, and another stage read in its place."""
    own = {x.name for x in fields(EKFAC)}
    more = [x.name for x in fields(factors) if x.name not in own and getattr(factors, x.name)]
    if more:
        raise FactorsError(
            f"these factors of a stage of adapters or preferences have {' and '.join(more)} "
            f"besides, which a folder of factors does not hold: expected plain factors. Fit them "
            f"with msif.fit(…, folder=…), which keeps them whole, to be read by msif.load_factors"
        )


def _write_layer(folder, number, layer):
    """Named by its content, a file never takes the place of one of earlier factors."""
    with files.atomic(folder / f"{number:04d}") as partial:
        safetensors.torch.save_file(tensors_of(layer), partial)
        sha256 = files.sha256_of_file(partial)
    path = folder / f"{number:04d}-{sha256[:12]}.safetensors"
    os.replace(folder / f"{number:04d}", path)
    return {"file": path.name, "sha256": sha256}


def claim(folder: Path) -> None:
    """Raise FactorsError unless `save` may write to a folder: there is none, or nothing in it but
    factors, whole or in part."""
    if folder.exists() and not folder.is_dir():
        raise FactorsError(f"{folder} is a file; expected a folder for factors: choose another")
    if (folder / "header.json").exists():
        read_header(folder)
    elif others := [x.name for x in folder.glob("*") if not OURS.fullmatch(x.name)]:
        raise FactorsError(
            f"{folder} exists and holds no factors but {sorted(others)[0]!r} (no header.json): "
            f"choose another folder, or remove it"
        )
    if folder.exists() and not os.access(folder, os.W_OK):
        raise FactorsError(f"{folder} cannot be written to: choose another, or change its rights")


def _tidy(folder):
    """Remove the files of factors that no header names."""
    header = folder / "header.json"
    kept = read_header(folder)["layers"].values() if header.exists() else ()
    kept = {".lock", *(x["file"] for x in kept)}
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def load(folder: str | Path, tracked: Tracked | None = None, in_memory: bool = True) -> EKFAC:
    """The `EKFAC` of a folder.

    tracked: refuse factors that are not those of this model and layers; FactorsError says why.
    in_memory: read all layers now; else each is read, checked and let go of whenever it is asked
    for, in the memory of one layer.
    """
    folder = Path(folder)
    header = read_header(folder)
    stored = header.pop("layers")
    paths = {name: folder / x["file"] for name, x in stored.items()}
    if tracked is not None:
        check_layers(folder, stored, tracked.layers)
        _check_model(folder, header["model"], model_digest(tracked.model))
        for layer in tracked.layers:
            _check_shape(folder, layer, paths[layer.name])
    read = {name: partial(_read_layer, paths[name], x["sha256"]) for name, x in stored.items()}
    found = LayerFiles(read, {name: partial(_rows, path) for name, path in paths.items()})
    return EKFAC(dict(found) if in_memory else found, header)


class LayerFiles(Mapping[str, LayerFactors]):
    """{layer name: LayerFactors} read from one file a layer, each time that it is asked for.

    read: {layer name: a function that reads its tensors}. read_rows: those that read its rows
    alone.
    """

    def __init__(
        self,
        read: Mapping[str, Callable[[], dict[str, Tensor]]],
        read_rows: Mapping[str, Callable[[], Tensor | None]] | None = None,
    ):
        self.read = read
        self.read_rows = read_rows

    def rows(self, name: str) -> Tensor | None:
        """The rows of a layer's blocks; None for one block."""
        return self[name].rows if self.read_rows is None else self.read_rows[name]()

    def __getitem__(self, name: str) -> LayerFactors:
        tensors: dict[str, Any] = {"rows": None, **self.read[name]()}
        return LayerFactors(**tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


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
        header = files.read_record(path)
    except files.Damaged as error:
        raise FactorsError(f"{error}, after removing {folder}") from error
    missing = REQUIRED - header.keys()
    if missing or header["schema"] != SCHEMA:
        raise FactorsError(
            f"{path}: schema {header.get('schema')} lacking {sorted(missing)}: expected factors of "
            f"schema {SCHEMA}"
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


def _check_shape(folder, layer, path):
    """From what the file says of itself and its rows, without its large tensors."""
    with _opened(path) as file:
        shape = tuple(file.get_slice("eigenvalues").get_shape())
    rows = _rows(path)
    expected = (*block_shape(layer), layer.inputs)
    if shape != expected:
        raise FactorsError(
            f"{folder}: {layer.name} has eigenvalues of shape {shape} (blocks, rows, inputs), but "
            f"this layer needs {expected}: another width or another per-head setting"
        )
    if layer.rows is not None and not (rows is not None and torch.equal(rows, layer.rows.cpu())):
        raise FactorsError(
            f"{folder}: {layer.name} was fitted with other output rows in its heads; fit the "
            f"factors again"
        )


def _rows(path):
    with _opened(path) as file:
        return file.get_tensor("rows") if "rows" in file.keys() else None


@contextmanager
def _opened(path):
    """A file of factors, its tensors still unread. FactorsError if it is missing or cut short."""
    if not path.is_file():
        raise FactorsError(f"{path}: missing, though header.json names it; fit the factors again")
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise _changed(path, error) from error


def _read_layer(path, sha256):
    with _opened(path) as file:
        if files.sha256_of_file(path) != sha256:
            raise _changed(path, "SHA-256 differs")
        return {name: file.get_tensor(name) for name in file.keys()}


def _changed(path, why):
    return FactorsError(
        f"{path}: truncated or changed since it was written ({why}); remove {path.parent} and fit "
        f"the factors again"
    )


def tensors_of(layer: LayerFactors) -> dict[str, Tensor]:
    """{field: tensor on the CPU} of `LayerFactors`, as files hold them."""
    found = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: x.contiguous().cpu() for name, x in found.items() if x is not None}


def _size(factors):
    return sum(x.nbytes for layer in factors.factors.values() for x in tensors_of(layer).values())
