"""What is measured by retraining is what training would have given,
and no more work than is left to do."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from msif.core.models import tiny_gpt_neox
from msif.study.beds import retraining, testbed
from msif.study.beds.retraining import Recipe, half_subsets, outcome, outcomes, retrained
from msif.study.corpora.corpus import generate

CORPUS = generate(0, fine_tuned=1, held_out=1, objects=2, near=0, fillers=5)
RECIPE = Recipe(
    CORPUS,
    dict(width=8, layers=1, heads=2),
    dict(epochs=2, rate=1e-2, batch_size=16),
    dict(epochs=1, rate=1e-2),
    32,
)
NOTHING = torch.zeros(len(CORPUS.documents), dtype=torch.bool)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of its own, with its own empty scratch/."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without(*documents):
    left_out = NOTHING.clone()
    left_out[list(documents)] = True
    return left_out


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_leaving_nothing_out_is_the_test_bed(tmp_path):
    testbed.build(
        tmp_path,
        CORPUS,
        model=RECIPE.model,
        pretraining=RECIPE.pretraining,
        finetuning=RECIPE.finetuning,
        max_length=32,
        seed=3,
    )
    found, expected = (
        dict(net.named_parameters())
        for net in (retrained(RECIPE, NOTHING, 3), testbed.load(tmp_path).model("finetuned"))
    )
    assert same(found, expected)


def test_a_half_is_exactly_half_and_rows_differ():
    halves = half_subsets(11, 6, seed=1)
    assert halves.dtype == torch.bool and halves.sum(1).tolist() == [5] * 6
    assert len(halves.unique(dim=0)) == 6


def test_more_subsets_begin_with_the_fewer_and_another_seed_gives_others():
    assert torch.equal(half_subsets(20, 5, seed=1)[:3], half_subsets(20, 3, seed=1))
    assert not torch.equal(half_subsets(20, 3, seed=1), half_subsets(20, 3, seed=2))


def test_the_text_of_a_left_out_document_does_not_matter(study):
    """Its words in reverse: the vocabulary is the same, and so is every bit of the outcome."""
    documents = list(CORPUS.documents)
    documents[4] = documents[4] | {"text": " ".join(reversed(documents[4]["text"].split()))}
    changed = replace(RECIPE, corpus=replace(CORPUS, documents=documents))
    assert same(outcome(changed, without(4), 0), outcome(RECIPE, without(4), 0))
    assert not same(outcome(changed, NOTHING, 0), outcome(RECIPE, NOTHING, 0))


def test_a_measurement_is_of_all_queries_in_their_order(study):
    net = retrained(RECIPE, NOTHING, 0)
    queries = testbed.encode(CORPUS, testbed.start(CORPUS, RECIPE.model, 0)[0], 32)[2]
    for name, values in outcome(RECIPE, NOTHING, 0).items():
        alone = torch.cat([retraining.measured(net, [query])[name] for query in queries])
        assert torch.allclose(values, alone, atol=1e-5)  # float32 sums of other batches


def test_a_killed_run_goes_on_where_it_stopped(study, monkeypatch):
    done, train = [], retraining.train

    def dies_in_the_third(net, sequences, **settings):
        if len(done) == 4:  # two stages each
            raise KeyboardInterrupt
        done.append(len(sequences))
        return train(net, sequences, **settings)

    monkeypatch.setattr(retraining, "train", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        [outcome(RECIPE, without(z), 0) for z in range(3)]
    assert not [
        p for p in study.glob("scratch/outcome-*") if not (p / "tensors.safetensors").exists()
    ]
    [outcome(RECIPE, without(z), 0) for z in range(2)]  # found, or `train` would die
    monkeypatch.setattr(retraining, "train", train)
    outcome(RECIPE, without(2), 0)
    assert len(list(study.glob("scratch/outcome-*"))) == 3


def arranged(left_out, seeds, together):
    """Is each retraining of `outcomes` at its subset, seed and query, as retrained alone?"""
    return together["log_probability"].shape == (
        len(left_out),
        len(seeds),
        len(CORPUS.queries),
    ) and all(
        same({name: values[i, j] for name, values in together.items()}, outcome(RECIPE, row, seed))
        for i, row in enumerate(left_out)
        for j, seed in enumerate(seeds)
    )


def test_outcomes_are_by_subset_and_seed(study, monkeypatch):
    """One thread in place of the processes, which take seconds to start."""
    monkeypatch.setattr(
        retraining, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1)
    )
    left_out, seeds = torch.stack([without(0), NOTHING, without(1, 2)]), [1, 0]
    assert arranged(left_out, seeds, outcomes(RECIPE, left_out, seeds))


@pytest.mark.slow
def test_processes_in_parallel_equal_one_after_the_other(study, monkeypatch):
    left_out, seeds = torch.stack([without(0), NOTHING]), [0, 1]
    together = outcomes(RECIPE, left_out, seeds, processes=2)
    (study / "serial").mkdir()
    (study / "serial" / "dvc.yaml").touch()
    monkeypatch.chdir(study / "serial")  # where nothing is kept yet
    assert arranged(left_out, seeds, together)


def test_new_weights_in_a_folder_that_training_starts_from_make_another_recipe(tmp_path):
    """So that retrainings of the old ones are not found again."""
    given = {"source": str(tmp_path)}
    keys = []
    for seed in (0, 1, 0):
        tiny_gpt_neox(20, width=8, layers=1, heads=2, seed=seed).save_pretrained(tmp_path)
        keys.append(Recipe(CORPUS, given, {}, {}).key())
    assert keys[0] == keys[2] and keys[0] != keys[1]
    assert "start" not in RECIPE.key()
