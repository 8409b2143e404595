"""Every rival on one small trained pair: all of them score all pairs,
and each is the function it says it is."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msif.rivals import retrieval
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.fact_tracing import comparison
from msif.study.tracing import methods
from msif.study.tracing.case import trained_case

SETTINGS = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 0.1, "batch_size": 64}


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
                case, dimension=4, refined={"documents": 20, "iterations": 1}, **SETTINGS
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
    assert set(comparison.costs(case, {"documents": 20, "iterations": 1})) >= methods


def test_a_second_call_reads_what_the_first_one_kept(study, monkeypatch):
    case, table = study
    for module, name in (
        (methods, "all_methods"),
        (retrieval, "embeddings"),
        (comparison.trackstar, "scores"),
    ):
        monkeypatch.setattr(module, name, None)
    again = comparison.compared(
        case, dimension=4, refined={"documents": 20, "iterations": 1}, **SETTINGS
    )
    assert all(torch.equal(again[name], x) for name, x in table.items())


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
    records = comparison.probed(case, 1e-3, 0.1, seed=0)
    assert {r["probe"] for r in records} >= {"statement", "paraphrase"} and all(
        np.isfinite(r["score"]) for r in records
    )
    comparison.save(table, tmp_path / "new")
    kept = load_file(tmp_path / "new" / "scores.safetensors")
    assert kept.keys() == table.keys() and torch.equal(kept["bm25/raw"], table["bm25/raw"])
