"""Which answers are asked again, what is left out for them; and the recipe is the test-bed's."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from msif.study import paths
from msif.study.beds import sources, testbed
from msif.study.case_studies import counterfactual
from msif.study.case_studies.counterfactual import Absence, Effect
from msif.study.removal import effects

TESTBED = {
    "seeds": [0],
    "corpus": {
        "source": "generated",
        "fine_tuned": 3,
        "held_out": 3,
        "objects": 2,
        "near": 0,
        "fillers": 5,
    },
    "model": {"width": 8, "layers": 1, "heads": 2},
    "pretraining": {"epochs": 2, "rate": 1e-2, "batch_size": 16},
    "finetuning": {"epochs": 1, "rate": 1e-2},
    "checkpoints": [1],
    "max_length": 32,
}
HERE = {"influence": "multi_stage/normalised", "random": effects.RANDOM}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose notebooks 1 and 3 have run: a test-bed that answers all rightly, and scores."""
    monkeypatch.chdir(tmp_path)
    stages = {"testbed": TESTBED, "fact_tracing": {"only_correct": True, "queries": 8}}
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profiles": ["mine"], "mine": stages}))
    for name in ("01_testbed", "03_fact_tracing", "10_removal"):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    monkeypatch.setattr(paths, "_running", paths.Running("10_removal", by_hand=False))
    settings = {name: x for name, x in TESTBED.items() if name != "seeds"}
    bed = sources.bed(0, **settings)
    folder = tmp_path / "results" / "mine"
    (folder / "fact_tracing" / "seed-0").mkdir(parents=True)
    (folder / "testbed").mkdir()
    bed.folder.rename(folder / "testbed" / "seed-0")
    right = {n: (row["answer"], n % 2 == 0) for n, row in enumerate(bed.corpus.queries)}
    monkeypatch.setattr(testbed, "answers", lambda model, tokenizer, rows: list(right.values()))
    asked = [n for n in right if right[n][1]][:8]
    scores = torch.rand(len(asked), len(bed.documents), generator=torch.Generator().manual_seed(1))
    save_file({HERE["influence"]: scores}, folder / "fact_tracing/seed-0/scores.safetensors")
    return bed, asked, scores


def test_the_rows_are_those_of_the_scores(study):
    bed, asked, scores = study
    found = effects.traced("mine", 0, HERE)
    assert found.rows == [bed.corpus.queries[n] for n in asked]
    assert torch.equal(found.scores["influence"], scores)
    drawn = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.scores["random"], drawn)


def test_the_recipe_trains_the_models_of_the_test_bed(study):
    """Without anything left out, both stages of it give θ₂ of notebook 1, to the bits."""
    recipe = effects.traced("mine", 0, HERE).recipe
    again = counterfactual.retrained(recipe, Absence(), 0)[1]
    first = testbed.load(paths.results("mine", "testbed", "seed-0")).model("finetuned")
    for (name, a), (_, b) in zip(again.named_parameters(), first.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_does_not_belong_together_is_refused(study):
    with pytest.raises(ValueError, match="'bm42/raw' is none of notebook 3's scores; expected"):
        effects.traced("mine", 0, {"x": "bm42/raw"})
    _, asked, scores = study
    kept = paths.results("mine", "fact_tracing", "seed-0") / "scores.safetensors"
    save_file({HERE["influence"]: scores[1:].contiguous()}, kept)
    with pytest.raises(ValueError, match=rf"are \({len(asked) - 1}, .*expected \({len(asked)}, "):
        effects.traced("mine", 0, HERE)
    other = yaml.safe_load(open("params.yaml"))
    other["mine"]["testbed"]["corpus"]["fillers"] = 6
    open("params.yaml", "w").write(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="gives another corpus than the one"):
        effects.traced("mine", 0, HERE)


def test_the_answers_treated_are_whole_groups_without_a_subject_or_answer_twice():
    rows = [{"subject": f"s{n % 5}", "answer": f"a{n % 7}"} for n in range(35)]
    found = effects.chosen(rows, groups=2, together=4, seed=3)
    assert len(found) == len(set(found)) == 8
    assert [len(g) for g in counterfactual.groups([rows[n] for n in found], 4)] == [4, 4]
    assert found == effects.chosen(rows, groups=2, together=4, seed=3)
    assert found != effects.chosen(rows, groups=2, together=4, seed=4)


def test_what_was_left_out_is_counted_by_what_it_says(study):
    case = effects.traced("mine", 0, HERE)
    row, documents = case.rows[0], case.recipe.corpus.documents
    named = next(
        n
        for n, d in enumerate(documents)
        if row["subject"] in d["text"] and n not in row["proponents"]
    )
    other = next(n for n, d in enumerate(documents) if row["subject"] not in d["text"])
    scores = torch.zeros(len(case.rows), len(documents))
    scores[0, [row["proponents"][0], named, other]] = torch.tensor([3.0, 2.0, 1.0])
    found = effects.composition(
        effects.Traced(case.recipe, case.rows, {"ours": scores}), [0], top=3
    )
    assert {name: x.tolist() for name, x in found["ours"].items()} == dict.fromkeys(
        effects.CLASSES, [pytest.approx(1 / 3)]
    )


def test_answers_of_several_test_beds_are_counted_together():
    yes = np.array([[True]])
    one = Effect(np.array([[0.8]]), np.array([[0.2]]), yes, yes, [["x"]])
    found = effects.pooled([{"ours": one, "alone": one}, {"ours": one}])
    assert list(found) == ["ours"] and found["ours"].lost.tolist() == [True, True]
    assert found["ours"].says == [["x"], ["x"]]
    assert effects.drop(found["ours"]) == pytest.approx([np.log(4)] * 2)


def test_a_killed_retraining_goes_on_in_its_second_stage(study, tmp_path, monkeypatch):
    recipe = effects.traced("mine", 0, HERE).recipe
    monkeypatch.setattr("msif.study.beds.training.EVERY", 0)
    whole = counterfactual.retrained(recipe, Absence((1,)), 7)[1]
    train, calls = counterfactual.train, []

    def killed(net, sequences, **settings):
        calls.append(len(sequences))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(net, sequences, **settings)

    monkeypatch.setattr(counterfactual, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        counterfactual.retrained(recipe, Absence((1,)), 7, tmp_path / "state")
    kept = torch.load(tmp_path / "state" / "pretraining.pt", weights_only=True)
    assert len(kept["history"]) == TESTBED["pretraining"]["epochs"]
    again = counterfactual.retrained(recipe, Absence((1,)), 7, tmp_path / "state")[1]
    assert not (tmp_path / "state").exists()
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_retrainings_is_said_before(study):
    case = effects.traced("mine", 0, HERE)
    numbers = effects.chosen(case.rows, groups=2, together=2)
    how = {"top": 2, "together": 2, "seeds": [5], "processes": 1}
    effects.withdrawn(case, numbers, **how)
    done = list(paths.root().glob("scratch/counterfactual-*/value.json"))
    assert len(done) == effects.runs([0], 2, HERE, [5]) == 5
    assert all("says" in json.loads(file.read_text()) for file in done)
