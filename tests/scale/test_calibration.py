"""What a few batches say of time and memory, beside what a fit and a score then take."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from support import ROOT, families
from support.tiny import llama, neox

from msif.core import influence
from msif.core.data import Sequence
from msif.core.layers import tracked
from msif.core.models import tiny_gpt_neox
from msif.scale import calibration, fitting
from msif.scale.plan import plan_fit, plan_score
from msif.scale.plans import Calibration
from msif.scale.sizes import duration

sys.path.insert(0, str(ROOT / "benchmarks"))

import planned  # noqa: E402


def sequences(n, vocabulary, shortest=4, longest=8):
    draw = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(3, vocabulary, (shortest + k % (longest - shortest + 1),), generator=draw)
        for k in range(n)
    ]
    return [Sequence(k, tuple(row.tolist()), tuple(row.tolist())) for k, row in enumerate(rows)]


MAKES = (neox, llama, families.gpt2, families.qwen3)


@pytest.mark.parametrize("make", MAKES, ids=lambda x: x.__name__)
def test_any_model_is_calibrated_and_left_as_it_was(make):
    model = make()
    net, state = tracked(model), torch.get_rng_state()
    rows = sequences(10, families.VOCAB if make in (families.gpt2, families.qwen3) else 12)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    wished = [p.requires_grad for p in model.parameters()]
    fit = calibration.of_fit(net, rows, samples=2, batch_size=4, seconds=0.1)
    score = calibration.of_scores(net, rows, 3, batch_size=4, seconds=0.1)
    for found in (fit, score):
        assert min(found.model, found.products, found.seconds, found.batches) > 0
    assert fit.eigh > 0 and score.eigh is None
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wished
    assert torch.equal(state, torch.get_rng_state())
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in model.modules())


def test_a_plan_with_a_calibration_has_its_memory_and_a_time_at_its_rates():
    net = tracked(neox())
    known = Calibration(3.0, 1e9, 2e9, 5e8, 1.5, 4)
    plain, plan = (plan_fit(net, [8] * 6, batch_size=2, calibration=x) for x in (None, known))
    assert plain.time is None and "on this machine" not in str(plain)
    assert plan.time == plan.model_flops / 1e9 + plan.product_flops / 2e9 + plan.eigh_flops / 5e8
    assert f"about {duration(plan.time)} on this machine: time and memory by 4" in str(plan)
    one = plan.partitions[0].activations
    assert one == pytest.approx(3.0 / 1.2 * plain.partitions[0].activations, rel=1e-3)
    score = plan_score(net, [8] * 6, 2, calibration=Calibration(None, 1e9, 1e9, None, 1.5, 4))
    assert score.time == (score.model_flops + score.product_flops) / 1e9
    assert score.peak == plan_score(net, [8] * 6, 2).peak, "the system did not say: as from shapes"
    assert "time by 4 batches, which took 1.5 s" in str(score)


def test_a_model_without_numbers_is_refused():
    with torch.device("meta"):
        empty = tracked(llama())
    with pytest.raises(ValueError, match="meta device has no numbers to time: load its weights"):
        calibration.of_fit(empty, sequences(4, 12))


def test_it_keeps_to_about_the_seconds_also_where_the_largest_batch_would_take_longer():
    """The largest batch takes about a second; a tenth of one is given."""
    net = tracked(tiny_gpt_neox(200, width=128, layers=4, context=256))
    rows, start = sequences(64, 200, 200, 256), time.process_time()
    found = calibration.of_fit(net, rows, batch_size=64, seconds=0.1, clock=time.process_time)
    taken = time.process_time() - start
    assert found.batches == 2  # a part of the largest for memory, and one for time
    plan = plan_fit(net, [len(x.input_ids) for x in rows], batch_size=64, calibration=found)
    assert found.seconds <= taken and plan.time > 0


def test_time_is_predicted_within_half(tmp_path):
    """By CPU time, of a fit of a second; the benchmark says how near it is on larger ones."""
    net, rows = tracked(tiny_gpt_neox(200, width=128, layers=2)), sequences(256, 200, 20, 60)
    lengths, timed = [len(x.input_ids) for x in rows], {"batch_size": 16}

    def spent(call):
        start = time.process_time()
        call()
        return time.process_time() - start

    fitting.fit(tmp_path / "warm", net, rows[:16], samples=1)
    known = calibration.of_fit(net, rows, samples=1, clock=time.process_time, **timed)
    plan = plan_fit(net, lengths, draws=1, calibration=known, **timed)
    took = spent(lambda: fitting.fit(tmp_path / "f", net, rows, samples=1, **timed))
    assert 0.5 < plan.time / took < 1.5, (plan.time, took)
    known = calibration.of_scores(net, rows, 4, clock=time.process_time, **timed)
    plan = plan_score(net, lengths, 4, calibration=known, **timed)
    w = {x.name: torch.randn(4, x.inputs, x.out_features).mT for x in net.layers}
    took = spent(lambda: influence.score(net, rows, w, **timed))
    assert 0.5 < plan.time / took < 1.5, (plan.time, took)


TAKEN = """
import torch
from msif.core.resources import memory_taken

def call():
    for _ in range(3):
        torch.ones(2**24)

print(memory_taken(call, torch.device("cpu")))
"""


def test_the_memory_of_a_call_is_what_it_held_at_once():
    """In a process of its own: an allocator that has been used answers from what it kept."""
    taken = subprocess.run(
        [sys.executable, "-c", TAKEN], capture_output=True, text=True, env=own_tree(), check=True
    ).stdout.strip()
    if taken == "None":
        pytest.skip("this system does not say")
    assert 2**26 * 0.95 <= int(taken) < 1.2 * 2**26


def own_tree():
    """An environment in which a process imports this tree."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


@pytest.mark.slow
def test_the_measured_peak_is_the_predicted_one_within_a_tenth(monkeypatch):
    """4 M tracked weights, each in a process of its own, whose allocator returns what is freed:
    what glibc's otherwise keeps is a tenth more or less of so small a model, by chance."""
    size = planned.Size("4 M", 256, 704, 5, 4, 4, 4096, documents=64)
    monkeypatch.setenv("PYTHONPATH", own_tree()["PYTHONPATH"])
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    found, took = (planned.child(what, size) for what in ("predicted", "measured"))
    for what in ("fit", "score"):
        one, two = found[what]["peak"], took[what]["peak"]
        assert 0.9 < one / two < 1.1, (what, one, two, json.dumps(found))
