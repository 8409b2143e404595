"""Every rival on one small trained pair: all of them score all pairs,
and each is the function it says it is."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msif.core.capture import gradients
from msif.core.influence import Damping, Stage, query_gradients, trajectory
from msif.core.objectives import loss
from msif.rivals import retrieval
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.fact_tracing import comparison
from msif.study.tracing import methods
from msif.study.tracing.case import trained_case

SETTINGS = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 0.1, "batch_size": 64}
CHOSEN = {"trak_trajectory": {"dimension": 4, "ridge": 0.1, "query_at": "finetuned"}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A case in a study with its own scratch/, and the table of all rivals."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        (folder / "dvc.yaml").touch()
        patch.chdir(folder)
        corpus = generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5)
        recipe = Recipe(
            corpus,
            {"width": 16, "layers": 1, "heads": 2},
            {"epochs": 2, "rate": 3e-3},
            {"epochs": 1, "rate": 1e-3},
        )
        case = trained_case(recipe, 0, (1,), samples=(1, 1))
        yield (
            case,
            comparison.compared(
                case,
                dimension=4,
                refined={"documents": 20, "iterations": 1},
                chosen=CHOSEN,
                **SETTINGS,
            ),
        )


def test_every_method_scores_every_pair(study):
    case, table = study
    shape = (len(case.queries), len(case.bed.documents))
    assert all(x.shape == shape and x.isfinite().all() for x in table.values())
    methods = {name.split("/")[0] for name in table}
    assert {
        "multi_stage_refined",
        "trackstar",
        "hidden_mean",
        "bm25_question",
        "tfidf",
        "multi_stage_trajectory + embeddings",
    } <= methods
    assert set(comparison.costs(case, {"documents": 20, "iterations": 1}, CHOSEN)) >= methods


def test_a_second_call_reads_what_the_first_one_kept(study, monkeypatch):
    case, table = study
    for module, name in (
        (methods, "all_methods"),
        (retrieval, "embeddings"),
        (comparison.trackstar, "scores"),
    ):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(comparison.tuning, "METHODS", None)
    again = comparison.compared(
        case, dimension=4, refined={"documents": 20, "iterations": 1}, chosen=CHOSEN, **SETTINGS
    )
    assert all(torch.equal(again[name], x) for name, x in table.items())


def test_over_checkpoints_query_and_candidate_both_stand_at_each(study):
    """TracInCP and single-stage influence, from gradients that are formed and multiplied."""
    case, table = study
    names = case.bed.checkpoints
    assert len(names) == 2
    dots, alone = [], []
    for name in names:
        net = case.tracked(name)
        q = query_gradients(net, case.queries)
        z = gradients(net, case.bed.documents, loss)
        w = Stage(case.factors[name], Damping(SETTINGS["damping"])).inverse(q)
        dots.append(sum(torch.einsum("qoi,noi->qn", q[x], z[x]) for x in z))
        alone.append(sum(torch.einsum("qoi,noi->qn", w[x], z[x]) for x in z))
    near = {"rtol": 1e-3, "atol": 1e-4}  # float32 sums in another order; scores of size 1 or more
    expected = trajectory(alone)
    assert torch.allclose(table["tracincp/raw"], dots[0] + dots[1], **near)
    assert torch.allclose(table["gradient_dot_pretrained/raw"], dots[-1], **near)
    assert torch.allclose(table["single_stage_pretrained_trajectory/raw"], expected, **near)
    assert torch.allclose(table["single_stage_pretrained/raw"].corrcoef(), alone[-1].corrcoef())
    with pytest.raises(ValueError, match="learning rates"):
        methods.all_methods(case, rates=[1.0], **SETTINGS)


def test_layers_and_queries_in_groups_give_the_same_scores_and_are_kept(study, monkeypatch):
    """For large models: sums over groups of layers, beside each other for groups of queries."""
    case, table = study
    monkeypatch.setattr(methods, "TOGETHER", 3)
    found = methods.all_methods(case, parts=2, **SETTINGS)
    for name, both in found.items():
        for form, values in zip(methods.FORMS, both):
            whole = table[f"{name}/{form}"]
            size = whole.abs().max()
            assert torch.allclose(values, whole, rtol=1e-3, atol=1e-5 * size), (name, form)
    monkeypatch.setattr(methods, "_at_model", None)
    again = methods.all_methods(case, parts=2, **SETTINGS)
    assert all(torch.equal(a, b) for n in found for a, b in zip(again[n], found[n]))
    few = case.queries[:3]
    monkeypatch.undo()
    one = methods.multi_stage(case, few, case.bed.documents, 1e-3, 0.1, parts=3)
    whole = table["multi_stage/raw"][:3]
    assert torch.allclose(one.values, whole, rtol=1e-3, atol=1e-5 * whole.abs().max())


def test_text_search_reads_question_and_answer(study):
    case, table = study
    texts = [d["text"] for d in case.bed.corpus.documents]
    both = [f"{row['prompt']} {row['answer']}" for row in case.rows]
    assert np.array_equal(table["bm25/raw"].numpy(), retrieval.bm25(texts, both))
    assert not torch.equal(table["bm25/raw"], table["bm25_question/raw"])
    assert np.array_equal(
        comparison.filtering(table, "tfidf").argsort(1),
        retrieval.fused(table["tfidf/raw"]).argsort(1),
    )


def test_queries_scored_a_few_at_a_time_have_the_scores_of_their_candidates(study):
    case, table = study
    for row in case.rows:
        row["candidates"] = sorted({*row["proponents"], 0, 1, 2, 3})
    found = comparison.influences(case, 2, SETTINGS)
    for name in ("multi_stage/raw", "single_stage_finetuned/normalised"):
        for q, row in enumerate(case.rows):
            few = row.pop("candidates") if name.endswith("normalised") else row["candidates"]
            assert torch.allclose(
                found[name][q, few],
                table[name][q, few],
                rtol=1e-3,
                atol=1e-5 * table[name].abs().max(),
            )
            assert found[name][q].isfinite().sum() == len(few)


def test_probes_are_scored_and_tables_are_saved(study, tmp_path):
    case, table = study
    for records in comparison.probed(case, 1e-3, 0.1, seed=0).values():
        assert {r["probe"] for r in records} >= {"statement", "paraphrase"} and all(
            np.isfinite(r["score"]) for r in records
        )
    comparison.save(table, tmp_path / "new")
    kept = load_file(tmp_path / "new" / "scores.safetensors")
    assert kept.keys() == table.keys() and torch.equal(kept["bm25/raw"], table["bm25/raw"])
