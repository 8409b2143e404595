"""One small study, from corpus to scores: what the notebooks call, at a hundredth of the size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import relative

from msif.core import ekfac, store
from msif.core.influence import query_gradients, score
from msif.core.layers import Tracked, tracked
from msif.core.models import tiny_gpt_neox
from msif.study import metrics
from msif.study.beds import given, testbed, training
from msif.study.corpora.corpus import generate
from msif.study.tracing import methods
from msif.study.tracing.case import load_case

SETTINGS = {
    "model": {"width": 16, "layers": 1, "heads": 2},
    "pretraining": {"epochs": 2, "rate": 3e-3},
    "finetuning": {"epochs": 1, "rate": 1e-3},
    "checkpoints": [1],
    "max_length": 32,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    testbed.build(folder / "bed", corpus, **SETTINGS)
    bed = testbed.load(folder / "bed")
    for name in [*bed.checkpoints, "finetuned"]:
        net = bed.model(name)
        data = bed.finetuning if name == "finetuned" else bed.documents
        store.save(ekfac.fit(tracked(net), data, samples=1), folder / "factors" / name)
    return load_case(folder / "bed", folder / "factors", {}, only_correct=False, limit=4)


@pytest.fixture(scope="module")
def scores(case):
    return methods.all_methods(case, damping=1e-3, alpha=0.1, single_stage_damping=0.1)


def test_a_loaded_test_bed_is_the_one_that_was_built(case):
    assert case.bed.corpus == generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    assert case.bed.checkpoints == ["checkpoint-1", "pretrained"]
    assert len(case.bed.history["pretraining"]) == 2 and len(case.queries) == 4


def test_fine_tuning_starts_where_pre_training_ended(case):
    first, last = (dict(case.bed.model(n).named_parameters()) for n in ("pretrained", "finetuned"))
    moved = sum((first[n] - last[n]).norm() ** 2 for n in first) / sum(
        x.norm() ** 2 for x in first.values()
    )
    assert 0 < moved < 0.1


def test_methods_scored_together_equal_each_scored_alone(case, scores):
    tuned, net = case.bed.model("finetuned"), case.bed.model("pretrained")
    q = query_gradients(Tracked(tuned, case.layers), case.queries)
    for name, w in methods.query_vectors(
        q, case.factors["pretrained"], case.factors["finetuned"], 1e-3, 0.1
    ).items():
        alone = score(Tracked(net, case.layers), case.bed.documents, w, batch_size=7)
        for together, single in zip(scores[name], (alone.values, alone.normalised())):
            # float32 sums, other batches
            assert torch.allclose(together, single, rtol=1e-3, atol=1e-4 * single.abs().max())


@pytest.mark.parametrize("parts", [2, 4])
def test_layers_scored_in_groups_give_the_same_scores(case, scores, parts):
    """Scores and squared norms are sums over layers; float32, in another order."""
    lazy = replace(case, factors=_on_disk(case))
    settings = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 0.1, "parts": parts}
    for name, pair in methods.all_methods(lazy, **settings).items():
        for found, whole in zip(pair, scores[name]):
            assert torch.allclose(found, whole, rtol=1e-3, atol=1e-4 * whole.abs().max())


def _on_disk(case):
    """The case's factors, each layer read when it is asked for."""
    folder = case.bed.folder.parent / "factors"
    return {name: store.load(folder / name, in_memory=False) for name in case.factors}


def test_parts_are_all_layers_once_and_no_more_than_there_are(case):
    for count in (1, 2, 3, len(case.layers)):
        found = case.parts(count)
        assert [x for part in found for x in part.layers] == case.layers
        assert len(found) <= count and all(part.layers for part in found)
    with pytest.raises(ValueError, match="parts is 99; expected 1 to"):
        case.parts(99)


def test_a_killed_pre_training_goes_on_with_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EVERY", 0)
    corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    testbed.build(tmp_path / "whole", corpus, **SETTINGS)
    kept = training.keep_state

    def killed(*arguments):
        kept(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "keep_state", killed)
    with pytest.raises(KeyboardInterrupt):
        testbed.pretrain(tmp_path / "first", corpus, **SETTINGS, state=tmp_path / "state")
    monkeypatch.setattr(training, "keep_state", kept)
    testbed.pretrain(tmp_path / "second", corpus, **SETTINGS, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    for name in ("checkpoint-1", "pretrained"):
        files = [tmp_path / at / name / "model.safetensors" for at in ("whole", "second")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_two_processes_may_train_the_same_at_once(tmp_path, monkeypatch):
    """The second finds the folder taken, and keeps its checkpoints to itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    with testbed.resumable({"a": 1}) as first, testbed.resumable({"a": 1}) as second:
        assert first is not None and second is None
    bed = testbed.trained(0, corpus, **SETTINGS)
    assert bed.checkpoints == ["checkpoint-1", "pretrained"]
    assert not list((tmp_path / "scratch").glob("training-*/state.pt"))


def test_ablations_are_the_score_with_one_part_replaced_by_the_identity(case, scores):
    """α → ∞ makes T₂ = I, and d → ∞ makes (H₁ + d)⁻¹ a multiple of the identity within each
    layer."""
    infinite = methods.all_methods(case, damping=1e-3, alpha=1e9, single_stage_damping=1)[
        "multi_stage"
    ][0]
    assert relative(infinite, scores["pretraining_only"][0]) < 1e-5  # float32


def test_trajectory_has_no_unit_and_one_term_a_checkpoint(scores):
    raw = scores["multi_stage_trajectory"][0]
    last = scores["multi_stage"][0]
    assert raw.shape == last.shape
    assert torch.corrcoef(torch.stack([raw.flatten(), last.flatten()]))[0, 1] > 0.5


def test_top_documents_are_the_highest_and_their_tokens_sum_to_the_score(case, scores):
    values = scores["multi_stage"][0][0]
    top = methods.top_documents(case, case.queries[0], values, 1e-3, 0.1, count=3)
    assert [row["score"] for row in top] == values.sort(descending=True).values[:3].tolist()
    for row in top:
        assert sum(row["scores"]) == pytest.approx(row["score"], rel=1e-3)
        assert row["words"] == case.bed.corpus.documents[row["document"]]["text"].split()


def test_grid_has_the_value_of_each_setting_at_its_place(case, scores):
    table = methods.grid(case, [1.0, 1e-3], [0.1])
    expected = metrics.reciprocal_ranks(scores["multi_stage"][0].numpy(), case.proponents).mean()
    assert np.shape(table["raw"]) == (2, 1) and table["raw"][1][0] == pytest.approx(
        expected, rel=1e-2
    )


def test_costs_count_every_fit_and_pass(case):
    """One sample a fit: two passes of one forward and one backward each are two passes;
    two checkpoints, one fine-tuning."""
    cost, share = methods.costs(case), len(case.bed.finetuning) / len(case.bed.documents)
    assert cost["gradient_dot"] == 1 and cost["pretraining_only"] == 3
    assert cost["multi_stage_trajectory"] == pytest.approx(2 + 2 * 2 + 2 * share, abs=0.01)


def test_no_correct_answer_is_an_error_that_says_what_to_do(case, tmp_path):
    with pytest.raises(ValueError, match="train longer, or set only_correct"):
        load_case(case.bed.folder, case.bed.folder.parent / "factors", {}, limit=0)


@pytest.mark.parametrize(
    "wrong, says", [({"finetuning": {"epoch": 1}}, "epoch"), ({"checkpoints": [3]}, "1 to 2")]
)
def test_a_wrong_setting_of_either_stage_is_refused_before_training(wrong, says, tmp_path):
    corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
    with pytest.raises((TypeError, ValueError), match=says):
        testbed.build(tmp_path, corpus, **SETTINGS | wrong)
    assert not any(tmp_path.iterdir())


def test_a_pair_that_was_trained_elsewhere_stays_there(case, tmp_path):
    bed = case.bed
    models = {name: {"source": str(bed.folder / name)} for name in ("pretrained", "finetuned")}
    given.given(tmp_path, bed.corpus, models, bed.tokenizer, SETTINGS["max_length"])
    elsewhere = testbed.load(tmp_path)
    assert (
        elsewhere.documents == bed.documents
        and elsewhere.queries == bed.queries
        and elsewhere.checkpoints == ["pretrained"]
    )
    assert not list(tmp_path.rglob("*.safetensors"))
    for name in models:
        same = zip(elsewhere.model(name).parameters(), bed.model(name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    with pytest.raises(ValueError, match="base.*expected finetuned and pretrained"):
        given.given(tmp_path, bed.corpus, {"base": {}}, bed.tokenizer, 32)
    tiny_gpt_neox(len(bed.tokenizer), width=8, layers=1, heads=2, context=4).save_pretrained(
        tmp_path / "short"
    )
    with pytest.raises(ValueError, match="context"):
        given.given(
            tmp_path / "bed",
            bed.corpus,
            dict.fromkeys(models, {"source": str(tmp_path / "short")}),
            bed.tokenizer,
            32,
        )
