"""Notebook 08 on pairs of one's own: any architecture, one pair after another, wrong rows named."""

import json
import shutil

import nbformat
import pytest
import torch
import yaml
from support import ROOT
from support.own_pair import build

import msif
from msif.study.pipeline import run
from msif.study.your_models import walkthrough

pytestmark = pytest.mark.filterwarnings("ignore:the largest score:UserWarning")  # tiny data


@pytest.fixture
def pair(tmp_path):
    folder = build(tmp_path / "pair")
    return folder, msif.load(folder / "base"), msif.load(folder / "tuned")


def test_what_a_model_says_is_compared_with_the_answer_token_by_token(pair):
    folder, base, tuned = pair
    rows = tuned.answers(folder / "rows.jsonl")
    assert walkthrough.learnt(tuned, rows) == 1 > walkthrough.learnt(base, rows)
    assert walkthrough.said(tuned, rows) == [(x, True) for _, x in walkthrough.as_text(tuned, rows)]
    wrong = tuned.answers(["Where was Bo born?"], ["Oslo"])
    assert walkthrough.as_text(tuned, wrong) == [("Where was Bo born?", "Oslo")]
    assert walkthrough.said(tuned, wrong) == [("Paris", False)]


def test_other_settings_in_one_pass_are_those_of_one_trace_each(pair):
    folder, base, tuned = pair
    docs, rows = base.documents(folder / "documents.jsonl"), tuned.answers(folder / "rows.jsonl")
    fitted = msif.fit(base, docs), msif.fit(tuned, rows)

    def stages(d, a):
        first = msif.Stage(base, fitted[0], damping=d)
        return [first, msif.Stage(tuned, fitted[1], alpha=a)]

    tried = {"damping": [0.01, 0.1], "alpha": [0.1, 1.0]}
    found = walkthrough.settings(stages(0.1, 0.1), rows[:2], docs, tried)
    assert list(found) == [(0.01, 0.1), (0.01, 1.0), (0.1, 0.1), (0.1, 1.0)]
    for setting, values in found.items():
        alone = msif.trace(stages(*setting), rows[:2], docs).normalised()
        torch.testing.assert_close(values, alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item())


def test_the_norm_of_the_weights_is_that_of_the_tracked_parameters(pair):
    _, base, _ = pair
    model, names = base.tracked.model, base.tracked.names
    numbers = [p.flatten() for x in names for p in model.get_submodule(x).parameters()]
    assert walkthrough.weights_norm(base.tracked) == pytest.approx(torch.cat(numbers).norm().item())


def section(folder, **more):
    """Ten lines of params.yaml."""
    return {
        "your_models": {
            "base": str(folder / "base"),
            "tuned": str(folder / "tuned"),
            "documents": str(folder / "documents.jsonl"),
            "rows": str(folder / "rows.jsonl"),
            "questions": [{"prompt": "Where was Gus born?"}],
            "tried": None,
            **more,
        }
    }


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder that is a study with these profiles: write(profiles) makes it."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "study" / "notebooks")
    shutil.copy(ROOT / "dvc.yaml", tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def write(profiles):
        text = yaml.safe_dump({"profiles": list(profiles), **profiles})
        (tmp_path / "study" / "params.yaml").write_text(text)
        return tmp_path / "study"

    return write


def printed(profile, folder):
    notebook = nbformat.read(
        folder / "results" / profile / "notebooks" / "08_your_models.ipynb", as_version=4
    )
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    return "".join(x.get("text", "") for x in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mistral"])
def test_two_pairs_in_a_row_by_two_profiles_of_ten_lines(kind, study, tmp_path):
    pairs = {f"mine{seed}": build(tmp_path / f"pair{seed}", kind, seed) for seed in (0, 1)}
    folder = study({name: section(pair) for name, pair in pairs.items()})
    for name in pairs:
        run.run("08_your_models", name)
        text = printed(name, folder)
        assert "WARNING" not in text and "holds: the tuned model gives most of its own" in text
        assert "scores of 24 documents for 1 questions" in text
        numbers = folder / "results" / name / "reports" / "your_models.metrics.json"
        assert json.loads(numbers.read_text())["questions"] == {"asked": 1, "answered": 1}


@pytest.mark.slow
def test_the_same_profile_takes_another_pair_and_names_wrong_rows(study, tmp_path):
    """The working folder is keyed by content; rows of another format are called out."""
    first, second = (build(tmp_path / f"pair{seed}", "gpt2", seed) for seed in (0, 1))
    folder = study({"mine": section(first)})
    run.run("08_your_models", "mine")
    rows = [{"prompt": f"{x} likes", "answer": "Oslo"} for x in ("Ada", "Bo", "Cy")]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    study({"mine": section(second, rows=str(tmp_path / "wrong.jsonl"))})
    run.run("08_your_models", "mine")
    text = printed("mine", folder)
    assert "WARNING: the tuned model gets its own fine-tuning rows WRONG" in text
    assert "FAILS: the tuned model gives most of its own" in text
