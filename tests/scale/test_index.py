"""An index with all coordinates is exact, with more of them it is nearer,
and a changed file is refused."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.indexed import indexed
from support.tiny import documents, relative

from msif.core.ekfac import fit
from msif.core.influence import Damping
from msif.core.objectives import log_probability
from msif.scale import index

DAMPING, ALL = Damping(0.1), 10**9


@pytest.fixture(scope="module", params=[False, True], ids=["whole layers", "per head"])
def study(request):
    return indexed(DAMPING, per_head=request.param)


def build(study, folder, size=ALL, **options):
    return index.build(
        study.tracked,
        study.candidates,
        study.factors,
        DAMPING,
        folder,
        size=size,
        **{"block": 8, **options},
    )


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "dtype,tolerance", [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)]
)
def test_all_coordinates_give_the_scores_as_exactly_as_they_are_stored(
    study, tmp_path, dtype, tolerance
):
    built = build(study, tmp_path, dtype=dtype)
    found = built.score(study.w)
    assert (
        relative(found.values, study.whole.values) < tolerance
        and found.values.dtype == torch.float64
    )
    torch.testing.assert_close(found.norms, study.whole.norms.float().double())
    torch.testing.assert_close(found.normalised(), found.values / found.norms)
    assert built.index.tolist() == list(range(100, 121))
    assert built.header["size"] == sum(
        x.out_features * (x.in_features + x.bias) for x in study.tracked.layers
    )


def test_an_index_is_opened_again_and_its_bytes_are_as_stated(study, tmp_path):
    built = build(study, tmp_path, size=64, held_out=(documents(9, seed=7), study.w))
    opened = index.open(tmp_path, study.factors)
    assert (
        torch.equal(opened.score(study.w).values, built.score(study.w).values)
        and opened.header == built.header
    )
    assert opened.header["bytes_per_document"] == index.document_bytes(64) == 64 * 2 + 16
    stored = [safetensors.torch.load_file(path) for path in tmp_path.glob("block-*")]
    assert sum(x.nbytes for block in stored for x in block.values()) == 21 * index.document_bytes(
        64
    )
    error = opened.header["error"]
    assert (
        0 < error["relative_rms"] < 1
        and 0 < error["spearman"] <= 1
        and (error["documents"], error["queries"]) == (9, 4)
    )


def test_a_killed_build_goes_on_to_the_same_bytes(study, tmp_path, monkeypatch):
    build(study, tmp_path / "whole", size=64)
    documents_of, calls = index.Coordinates.documents, []

    def dying(*run, **options):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return documents_of(*run, **options)

    monkeypatch.setattr(index.Coordinates, "documents", dying)
    with pytest.raises(KeyboardInterrupt):
        build(study, tmp_path / "cut", size=64)
    with pytest.raises(ValueError, match="no finished index"):
        index.open(tmp_path / "cut", study.factors)
    build(study, tmp_path / "cut", size=64)
    assert len(calls) == 4 and files(tmp_path / "cut") == files(tmp_path / "whole")


def test_the_folder_of_another_index_is_refused(study, tmp_path):
    build(study, tmp_path, size=64)
    for options, what in [
        ({"size": 65}, "size, coordinates, bytes_per_document differ"),
        ({"dtype": "bfloat16"}, "dtype differ"),
        ({"block": 9}, "block differ"),
        ({"objective": log_probability}, "objective differ"),
    ]:
        with pytest.raises(ValueError, match=what):
            build(study, tmp_path, **{"size": 64, **options})
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        build(study, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="other eigenbases"):
        index.open(tmp_path, fit(study.tracked, documents(20, seed=6)))
    with pytest.raises(ValueError, match="do not have the same layers"):
        index.open(tmp_path, study.factors).score({})


@pytest.mark.parametrize(
    "name", ["block-000001.safetensors", "coordinates.safetensors", "header.json"]
)
def test_a_changed_file_is_refused_by_name(study, tmp_path, name):
    build(study, tmp_path, size=64)
    whole = (tmp_path / name).read_bytes()
    for changed in (whole[:-20], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], None):
        (tmp_path / name).unlink() if changed is None else (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=name):
            index.open(tmp_path, study.factors)
    build(study, tmp_path, size=64)
    assert (tmp_path / name).read_bytes() == whole


def test_a_damaged_block_is_named_by_the_build_that_finds_it(study, tmp_path):
    build(study, tmp_path, size=64)
    path = tmp_path / "block-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="block-000001.safetensors: truncated or changed"):
        build(study, tmp_path, size=64)


def test_the_plan_is_printed_and_a_small_disk_refused(study, tmp_path, capsys):
    header = build(study, tmp_path, size=64, title="index").header
    assert "index: 21 documents, 64 coordinates; on disk " in capsys.readouterr().out
    assert json.loads((tmp_path / "header.json").read_text())["files"] == header["files"]
    with pytest.raises(OSError, match="needs .* of disk"):
        index.build(
            study.tracked,
            iter(study.candidates),
            study.factors,
            DAMPING,
            tmp_path,
            size=64,
            documents=10**12,
        )
