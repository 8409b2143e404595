"""Factors come back exactly, or not at all and with the reason; nothing that was there is lost."""

import json
import os
from collections import namedtuple

import pytest
import torch
from support.tiny import documents, neox

from msif.core import files, resources
from msif.core.ekfac import fit
from msif.core.layers import Tracked, tracked
from msif.core.store import FactorsError, load, save


@pytest.fixture(scope="module")
def fitted():
    model = neox()
    tracked_model = tracked(model, per_head=True)
    return model, tracked_model.layers, fit(tracked_model, documents(4))


@pytest.fixture
def folder(fitted, tmp_path):
    save(fitted[2], tmp_path / "factors")
    return tmp_path / "factors"


def same(a, b):
    def equal(x, y):
        return x is y if x is None else x.dtype == y.dtype and torch.equal(x, y)

    return list(a.factors) == list(b.factors) and all(
        equal(x, vars(b.factors[name])[key])
        for name, layer in a.factors.items()
        for key, x in vars(layer).items()
    )


def test_factors_come_back_exactly_with_where_they_come_from(fitted, folder):
    model, layers, factors = fitted
    tracked_model = Tracked(model, layers)
    found = load(folder, tracked_model)
    assert same(found, factors) and found.factors.keys() == factors.factors.keys()
    assert factors.header.items() <= found.header.items()
    assert {"torch", "transformers", "safetensors"} <= set(found.header["versions"])
    assert same(load(folder), factors)
    save(found, folder)
    assert same(load(folder, tracked_model), factors)
    assert os.listdir(folder.parent) == ["factors"]


def test_another_model_is_refused_by_its_digest(fitted, folder):
    with pytest.raises(
        FactorsError, match=f"fitted on a model with digest {fitted[2].header['model'][:12]}"
    ):
        load(folder, Tracked(neox(seed=1), fitted[1]))


def test_other_layers_are_refused_by_name(fitted, folder):
    model, layers, _ = fitted
    with pytest.raises(
        FactorsError, match=rf"only in the file: \['{layers[0].name}'\], only asked for: \[\]"
    ):
        load(folder, Tracked(model, layers[1:]))
    with pytest.raises(
        FactorsError, match=r"only in the file: \[\], only asked for: \['embed_out'\]|\['lm_head'\]"
    ):
        load(
            folder,
            tracked(model, "attention|mlp|^embed_out|^lm_head", per_head=True),
        )


def test_another_head_setting_is_refused_by_layer(fitted, folder):
    model, layers, _ = fitted
    with pytest.raises(
        FactorsError, match=f"{layers[0].name} has eigenvalues of shape .*per-head setting"
    ):
        load(folder, tracked(model))
    shuffled = [
        x
        if x.rows is None
        else type(x)(x.name, x.rows.flip(0), x.bias, x.in_features, x.out_features)
        for x in layers
    ]
    with pytest.raises(FactorsError, match=f"{layers[0].name} was fitted with other output rows"):
        load(folder, Tracked(model, shuffled))


def layer_file(folder, number):
    return next(folder.glob(f"{number:04d}-*"))


def damage(folder, file, change):
    path = folder / file
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:-1], lambda x: x[:-1] + bytes([x[-1] ^ 1]), lambda x: b""],
    ids=["truncated", "one bit", "empty"],
)
def test_a_damaged_file_is_named(folder, change):
    path = layer_file(folder, 3)
    damage(folder, path.name, change)
    with pytest.raises(FactorsError, match=f"{path.name}: truncated or changed"):
        load(folder)


def test_a_missing_file_or_folder_is_named(folder):
    path = layer_file(folder, 2)
    path.unlink()
    with pytest.raises(FactorsError, match=f"{path.name}: missing"):
        load(folder)
    with pytest.raises(FactorsError, match="nowhere: no header.json"):
        load(folder / "nowhere")


@pytest.mark.parametrize("key, value", [("schema", 99), ("tokens", None), ("layers", None)])
def test_a_header_of_another_schema_is_refused(folder, key, value):
    header = json.loads((folder / "header.json").read_text())
    changed = {k: v for k, v in {**header, key: value}.items() if v is not None}
    del changed["sha256"]
    files.write_record(folder / "header.json", changed)
    with pytest.raises(FactorsError, match="schema 99" if value else rf"lacking \['{key}'\]"):
        load(folder)


def test_a_header_with_another_count_is_refused(fitted, folder):
    """K-FAC multiplies by tokens / sequences, so these are part of the factors."""
    tokens = f'"tokens": {fitted[2].header["tokens"]}'.encode()
    damage(folder, "header.json", lambda x: x.replace(tokens, b'"tokens": 7'))
    with pytest.raises(FactorsError, match="header.json: truncated or changed since"):
        load(folder)


@pytest.mark.parametrize("text", ['{"schema": 1', "", "[]", "\xff"])
def test_a_truncated_or_foreign_header_is_refused(folder, text):
    (folder / "header.json").write_text(text, encoding="latin-1")
    with pytest.raises(FactorsError, match="header.json"):
        load(folder)


@pytest.mark.parametrize("step", ["safetensors.torch.save_file", "os.replace"])
def test_an_interrupted_save_leaves_the_earlier_factors(fitted, folder, step, monkeypatch):
    import safetensors.torch

    original = {
        "os.replace": os.replace,
        "safetensors.torch.save_file": safetensors.torch.save_file,
    }[step]
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(fitted[2].kfac(), folder)
    assert same(load(folder), fitted[2])


def test_a_folder_that_holds_something_else_is_not_overwritten(fitted, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FactorsError, match="exists and holds no factors"):
        save(fitted[2], tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    save(fitted[2], tmp_path / "new" / "nested")
    assert same(load(tmp_path / "new" / "nested"), fitted[2])


def test_too_little_disk_or_memory_is_said_before_the_work_starts(fitted, tmp_path, monkeypatch):
    model, layers, factors = fitted
    monkeypatch.setattr(
        resources.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000)
    )
    with pytest.raises(OSError, match="saving factors to .*needs .* of disk .* is free"):
        save(factors, tmp_path / "factors")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(resources, "available_memory", lambda: 1000)
    with pytest.raises(
        MemoryError,
        match="EK-FAC factors of 8 layers: needs .* of memory, .* is free. Use more partitions",
    ):
        fit(Tracked(model, layers), documents(4))
