"""The benchmarks run, count what they say,
and their committed tables are made from their committed numbers."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from support import ROOT

REPORTS = ROOT / "reports" / "benchmarks"
sys.path.insert(0, str(ROOT / "benchmarks"))

import billions  # noqa: E402
import peers  # noqa: E402
import peers_report  # noqa: E402
import planned  # noqa: E402
import precision  # noqa: E402
import size  # noqa: E402
import workload  # noqa: E402
from workload import Shape  # noqa: E402

from msif.core.layers import Tracked, tracked_layers  # noqa: E402
from msif.scale.plan import plan_fit  # noqa: E402


def record(library="msif", mode="exact", shape="base", **values):
    """A record of peers.json whose costs are made up."""
    costs = {name: values.get(name, 2.0) for name in peers.MEASURED}
    return {
        "library": library,
        "version": "1.0",
        "shape": shape,
        "queries": 8,
        "mode": mode,
        **costs,
        "repetitions": 3,
        "correlation": 1.0,
        "error": 0.0,
        **{
            f"{name}_{end}": x * factor
            for name, x in costs.items()
            for end, factor in (("low", 0.9), ("high", 1.2))
        },
    }


def test_a_quick_run_writes_well_formed_records(tmp_path):
    # this tree's msif
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "peers.py", "--quick", "--out", tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads((tmp_path / "peers.json").read_text())
    assert records[0]["mode"] == "exact" and {r["library"] for r in records} == {"msif"}
    for r in records:
        assert set(r) == set(peers.FIELDS) and r["repetitions"] == 1
        assert all(
            0 <= r[name] < math.inf and r[f"{name}_low"] <= r[name] <= r[f"{name}_high"]
            for name in peers.MEASURED
        )
        assert r["fit_ratio"] > 0 and r["score_ratio"] > 0 and r["correlation"] > peers.AGREE
    assert (tmp_path / "peers.md").read_text() == peers.table(records) and (
        tmp_path / "peers.png"
    ).exists()
    assert {"processor", "cores", "torch", "python", "date"} <= set(
        json.loads((tmp_path / "machine.json").read_text())
    )


def test_the_shapes_have_a_stated_number_of_tokens():
    made = {name: s for name, s in peers.SHAPES.items() if not s.real}
    assert {s.sequences * s.length for s in made.values()} == {workload.TOKENS, peers_report.FEWER}
    assert {peers.SHAPES[x].tokens for x in ("base", "queries64")} == {workload.TOKENS}
    assert {s.batch * s.length for s in peers.SHAPES.values()} == {workload.BATCH}
    assert set(made) == {"base", "seq32", "seq512", "queries64", "width128", "layers4"}
    assert set(peers.SHAPES) - set(made) == {"smollm"}


def test_table_and_figure_show_every_record():
    records = [
        record(fit_ratio=2.5),
        record(mode="low-rank"),
        record("kronfluence", fit_ratio=5.25),
        record("bergson", shape="seq32"),
    ]
    text = peers.table(records)
    assert (
        "2.50 (2.25–3.00)" in text
        and "5.25 (" in text
        and text.index("## base") < text.index("## seq32")
    )
    assert len(re.findall(r"^\| (?!library|---)", text, re.M)) == len(records)
    assert "costs msif 2.50 to fit" in peers_report.finding(records)
    assert len(peers.figure(records).axes) == 4


def test_a_rerun_keeps_finished_shapes(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        peers, "run_shape", lambda name, *rest: ran.append(name) or [record(shape=name)]
    )
    shapes = {name: peers.SHAPES[name] for name in ("base", "seq32")}
    peers.run(tmp_path, {"base": shapes["base"]}, ["msif"], 1, False)
    peers.run(tmp_path, shapes, ["msif"], 1, True)
    assert (
        ran == ["base", "seq32"]
        and [r["shape"] for r in json.loads((tmp_path / "peers.json").read_text())] == ran
    )


def test_scores_that_disagree_with_kronfluence_stop_the_run(monkeypatch):
    import torch

    monkeypatch.setattr(
        peers, "spawn", lambda library, shape, file: torch.save({"exact": torch.randn(4, 50)}, file)
    )
    with pytest.raises(RuntimeError, match="kronfluence and msif correlate"):
        peers.agreement(["msif", "kronfluence"], Shape())


def test_a_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(workload, "installed", lambda package: "0.0")
    with pytest.raises(SystemExit, match="kronfluence is 0.0, expected 1.0.1"):
        peers.require(["msif", "kronfluence"])


@pytest.mark.parametrize(
    "shape",
    [
        Shape(width=64, length=32, tokens=256, vocabulary=128),
        Shape(width=128, tokens=256, vocabulary=64),
    ],
    ids=["short", "long"],
)
def test_predicted_multiplications_are_those_that_run(shape):
    """All matrix products counted as they run (attention by plain products),
    two operations a multiplication."""
    from ours import MsifInMemory
    from torch import ops
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from msif.core.audit import unaudited
    from msif.core.selfcheck import batching

    uncounted = {
        ops.aten._linalg_eigh: lambda A, *rest, **more: 9 * A[-1] ** 3,
        ops.aten.addmm_: lambda t, a, b, *rest, **more: 2 * a[0] * a[1] * b[1],
        ops.aten.baddbmm_: lambda t, a, b, *rest, **more: 2 * a[0] * a[1] * a[2] * b[2],
    }

    def counted(call):
        with (
            unaudited(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=uncounted) as counter,
        ):
            call()
        return counter.get_total_flops()

    model, data = workload.build_model(shape), workload.build_data(shape)
    run = MsifInMemory(model, data, shape, None, "sampled")
    batching(run.tracked, run.data["train"], shape.batch)  # once a model, not part of its work
    plain = counted(lambda: workload.plain(model, data["train"], shape.batch))
    predicted = size.predicted(model, run.tracked.layers, shape)
    assert counted(run.fit) / plain == pytest.approx(sum(predicted["fit"].values()), rel=1e-9)
    assert counted(lambda: run.score("exact")) / plain == pytest.approx(
        sum(predicted["score"].values()), rel=1e-9
    )


def test_the_parts_of_a_cost_sum_to_it():
    shape = Shape(width=32, layers=1, length=16, queries=2, vocabulary=64, tokens=256)
    found = size.measured(shape)
    assert all(
        set(found[what]) == set(size.PARTS) and all(x >= 0 for x in found[what].values())
        for what in ("fit", "score")
    )
    assert found["fit"]["eigendecompositions"] > 0 == found["score"]["eigendecompositions"]


def test_memory_growth_is_the_peak_above_what_was_there():
    import torch

    growth, _ = workload.memory_growth(lambda: torch.ones(2**24).sum().item())  # 64 MB
    assert 60 < growth < 80


def test_precision_compares_each_query():
    import torch

    reference = torch.randn(3, 40).double()
    same = precision.compare(reference, reference)
    twice = precision.compare(2 * reference, reference)
    assert torch.allclose(same["correlation"], torch.ones(3).double()) and same["error"].max() == 0
    assert torch.allclose(twice["correlation"], torch.ones(3).double()) and torch.allclose(
        twice["error"], torch.ones(3).double()
    )


def test_low_precision_eigendecomposition_is_one():
    import torch

    M = torch.randn(6, 6)
    values, vectors = precision.low_precision_eigh(M @ M.mT)
    assert torch.allclose(vectors * values @ vectors.mT, M @ M.mT, atol=1e-4)


def committed(name):
    if not (REPORTS / f"{name}.json").exists():
        pytest.skip(f"reports/benchmarks/{name}.json: run benchmarks/{name}.py")
    return json.loads((REPORTS / f"{name}.json").read_text())


def test_the_committed_comparison_has_every_library_and_field():
    records = committed("peers")
    assert all(set(r) == set(peers.FIELDS) for r in records)
    assert {r["library"] for r in records if r["shape"] == "base"} == set(peers.NAMES)
    assert all(
        "msif" in {r["library"] for r in records if r["shape"] == shape}
        for shape in {r["shape"] for r in records}
    )
    assert all(r["repetitions"] >= 5 for r in records if r["shape"] == "base")
    assert all(r["correlation"] > peers.AGREE for r in records if r["library"] == "kronfluence")


@pytest.mark.parametrize("module", [peers, precision, size], ids=lambda m: m.__name__)
def test_the_committed_table_is_that_of_the_numbers(module):
    records = committed(module.__name__)
    assert (REPORTS / f"{module.__name__}.md").read_text() == module.table(records)
    assert (REPORTS / f"{module.__name__}.png").exists()


def test_the_committed_predictions_are_near_what_was_measured_and_quoted_as_they_are():
    """After a calibration: memory within a tenth, time within 30 %."""
    records = committed("planned")
    for x in records:
        for what in ("fit", "score"):
            one, two = x[what]["predicted"], x[what]["measured"]
            assert one["peak"] == pytest.approx(two["peak"], rel=0.1), (x["name"], what)
            assert one["seconds"] == pytest.approx(two["seconds"], rel=0.3), (x["name"], what)
    assert (REPORTS / "planned.md").read_text() == planned.page(records)
    assert planned.table(records) in (ROOT / "docs" / "large.md").read_text()


def test_the_folder_of_a_fit_is_watched(tmp_path):
    import time

    with planned.Watched(tmp_path) as disk:
        (tmp_path / "a").write_bytes(b"x" * 1000)
        time.sleep(0.3)
        (tmp_path / "a").unlink()
    assert disk.most == 1000


def test_the_plan_of_what_a_gpu_has_measured_is_near_it_and_not_below():
    """27 layers of 2.8 B parameters, 512 tokens a sequence, 8 at once, on one H200."""
    found = json.loads((ROOT / "reports/benchmarks/billions_measured.json").read_text("utf-8"))
    model = billions.architecture()
    assert sum(p.numel() for p in model.parameters()) == found["parameters"]
    part = Tracked(model, tracked_layers(model)[: found["layers"]])
    planned = plan_fit(part, [512] * (found["tokens"] // 512), batch_size=8, memory="100GiB").peak
    assert found["bytes, measured"] <= planned <= 1.25 * found["bytes, measured"]
    told = " ".join((ROOT / "docs/large.md").read_text("utf-8").split())
    assert f"the plan now says {planned / 1e9:.1f}" in told
