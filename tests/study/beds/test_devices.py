"""MSIF_DEVICE: a study on another device has the numbers of the CPU, and a device that is not there
is refused before anything is trained."""

import pytest
import torch
from support.other_device import other_device

from msif.core import ekfac, store
from msif.core.layers import tracked
from msif.study.beds import retraining, testbed
from msif.study.corpora.corpus import generate
from msif.study.fact_tracing import comparison
from msif.study.tracing import methods, rivals
from msif.study.tracing.case import load_case

CORPUS = {"fine_tuned": 3, "held_out": 2, "objects": 3, "fillers": 5}
STAGES = {
    "model": {"width": 16, "layers": 1, "heads": 2},
    "pretraining": {"epochs": 2, "rate": 3e-3},
    "finetuning": {"epochs": 1, "rate": 1e-3},
    "max_length": 32,
}


def numbers(folder):
    """What training, tracing, rivals and a retraining give."""
    corpus = generate(0, **CORPUS)
    testbed.build(folder / "bed", corpus, checkpoints=[1], **STAGES)
    bed = testbed.load(folder / "bed")
    for name in [*bed.checkpoints, "finetuned"]:
        data = bed.finetuning if name == "finetuned" else bed.documents
        store.save(ekfac.fit(tracked(bed.model(name)), data, samples=1), folder / "factors" / name)
    case = load_case(folder / "bed", folder / "factors", {}, only_correct=False, limit=4)
    settings = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 0.1}
    found = {name: x[1] for name, x in methods.all_methods(case, **settings).items()}
    found |= comparison.similar(case, 3)
    found["trak"] = rivals.trak_at(case, ["pretrained"], [{"dimension": 8, "ridge": 0.1}])[0]
    recipe = retraining.Recipe(corpus, **STAGES)
    left_out = torch.arange(len(bed.documents)) < 5
    found |= retraining.measured(retraining.retrained(recipe, left_out, 0), bed.queries)
    return bed.history["pretraining"], found


def test_a_study_on_another_device_has_the_numbers_of_the_cpu(tmp_path, monkeypatch):
    losses, expected = numbers(tmp_path / "here")
    monkeypatch.setenv("MSIF_DEVICE", "cuda")
    with other_device():
        moved, found = numbers(tmp_path / "there")
        found = {name: x.cpu() for name, x in found.items()}
    assert moved == pytest.approx(losses, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, x in expected.items():  # float32, added in another order
        assert torch.allclose(found[name], x, rtol=1e-3, atol=1e-4 * x.abs().max()), name


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_refused_before_training(name, monkeypatch):
    monkeypatch.setenv("MSIF_DEVICE", name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"MSIF_DEVICE is '{name}': .*expected a device"):
        testbed.start(generate(0, **CORPUS), STAGES["model"], 0)
