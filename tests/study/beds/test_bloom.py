"""The dry run of profile `bloom`: tiny BLOOM models in hub layout, LAMA and T-REx in miniature,
from files to MRR and Recall@10."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from support import ROOT
from support.bloom_study import SETTINGS, bloom_study

from msif.core import store
from msif.core.data import NO_LOSS
from msif.core.layers import Tracked, tracked_layers
from msif.rivals.retrieval import bm25
from msif.study import metrics
from msif.study.beds import given
from msif.study.beds.fitted import fitted
from msif.study.pipeline import run
from msif.study.tracing import candidates, methods
from msif.study.tracing.case import load_case

pytestmark = pytest.mark.slow
SCORING = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 1e-2}
METHODS = [
    "gradient_dot",
    "pretraining_only",
    "finetuning_only",
    "multi_stage",
    "single_stage_pretrained",
    "single_stage_finetuned",
    "gradient_dot_finetuned",
    "gradient_dot_pretrained",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with bloom_study(tmp_path_factory.mktemp("study")) as found:
        yield found


@pytest.fixture(scope="module")
def case(study, tmp_path_factory):
    bed, folder = given.prepared(42, **study[1]), tmp_path_factory.mktemp("factors")
    layers = {"pattern": None, "per_head": True}
    for name, data in (
        ("pretrained", bed.documents[: SETTINGS["factor_documents"]]),
        ("finetuned", bed.finetuning),
    ):
        found, at = fitted(
            Tracked(bed.model(name), tracked_layers(bed.model(name), **layers)),
            data,
            samples=2,
            seed=f"42/{name}",
        )
        store.save(found, folder / name)
    return load_case(bed.folder, folder, layers, only_correct=False)


@pytest.fixture(scope="module")
def scores(case):
    return candidates.candidate_scores(case, partial(methods.all_methods, **SCORING), at_once=6)


def test_the_tracked_layers_are_the_papers(case):
    """Query, key and value one block a head, attention output and both MLP matrices,
    in every block of the model."""
    names = [
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ]
    assert [x.name for x in case.layers] == [
        f"transformer.h.{block}.{name}" for block in range(2) for name in names
    ]
    assert [None if x.rows is None else len(x.rows) for x in case.layers] == [
        3 * 2,
        None,
        None,
        None,
    ] * 2
    assert case.bed.checkpoints == ["pretrained"]


def test_the_answers_object_alone_is_measured_and_all_of_a_document(case):
    for query, row in zip(case.queries, case.rows):
        scored = [token for token, label in zip(query.input_ids, query.labels) if label != NO_LOSS]
        assert case.bed.tokenizer.decode(scored).strip() == row["answer"]
    assert all(document.labels == document.input_ids for document in case.bed.documents)


def test_scores_of_few_queries_and_their_candidates_are_those_of_all(case, scores):
    """The memory of six queries, the passes of candidates alone,
    and the numbers of the plain way."""
    whole = methods.all_methods(case, **SCORING)
    for method in METHODS:
        for some, every in zip(scores[method], whole[method]):
            for row, (mine, all_) in zip(case.rows, zip(some, every)):
                inside = torch.zeros(len(mine), dtype=bool).index_fill(
                    0, torch.tensor(row["candidates"]), True
                )
                assert torch.isinf(mine[~inside]).all() and (~inside).any()
                # float32, other batches
                assert torch.allclose(
                    mine[inside], all_[inside], rtol=1e-3, atol=1e-4 * all_.abs().max()
                )
    assert scores["multi_stage"][0].shape == (20, len(case.bed.documents))


def test_the_table_names_methods_and_forms_and_has_no_path_of_one_model(case, scores):
    table = candidates.candidate_table(case, 6, **SCORING)
    assert set(table) == {
        f"{method}/{form}" for method in METHODS for form in ("raw", "normalised")
    }
    for name, values in table.items():
        method, form = name.split("/")
        assert values.dtype == torch.float32 and torch.equal(
            values, scores[method][form == "normalised"]
        )


def test_each_method_sees_a_group_and_the_union_of_its_candidates_with_each_model_read_once(case):
    groups, nets = [], set()

    def numbers(few):
        groups.append((len(few.queries), {d.index for d in few.bed.documents}))
        nets.add(id(few.bed.model("pretrained")))
        values = torch.tensor(
            [[query.index * 1000 + d.index for d in few.bed.documents] for query in few.queries]
        )
        return {"numbers": (values, values.half() * 0)}

    found = candidates.candidate_scores(case, numbers, at_once=7)["numbers"]
    assert [size for size, _ in groups] == [7, 7, 6] and len(nets) == 1
    for start, (_, seen) in zip((0, 7, 14), groups):
        assert seen == {n for row in case.rows[start : start + 7] for n in row["candidates"]}
    for query, row, values in zip(case.queries, case.rows, found[0]):
        assert {n: x for n, x in enumerate(values.tolist()) if x > -math.inf} == {
            n: query.index * 1000 + n for n in row["candidates"]
        }
    assert found[1].dtype == torch.float32 and torch.equal(found[1] == 0, found[0] > -math.inf)


def test_candidates_that_cannot_be_scored_are_refused_before_long_work(case):
    def never(few):
        pytest.fail("a method was called")

    for at_once in (0, -1):
        with pytest.raises(ValueError, match=f"at_once is {at_once}; expected at least 1"):
            candidates.candidate_scores(case, never, at_once)
    for without in ({"candidates": []}, None):
        rows = [dict(row) for row in case.bed.corpus.queries]
        rows[case.queries[3].index].update(without) if without else rows[case.queries[3].index].pop(
            "candidates"
        )
        bare = replace(case, bed=replace(case.bed, corpus=replace(case.bed.corpus, queries=rows)))
        with pytest.raises(ValueError, match="1 of 20 queries have no candidates, the first is "):
            candidates.candidate_scores(bare, never)


def test_metrics_over_candidates(case, scores):
    """A trained model's influence ranks the stating sentences above chance,
    among the candidates alone."""
    chance = sum(
        sum(math.comb(n - i, 1) / math.comb(n, 2) / i for i in range(1, n))
        for n in (len(row["candidates"]) for row in case.rows)
    ) / len(case.rows)  # two proponents each
    found = {
        m: [metrics.reciprocal_ranks(x.numpy(), case.proponents).mean() for x in scores[m]]
        for m in METHODS
    }
    assert all(0 < value <= 1 for pair in found.values() for value in pair)
    assert max(found["multi_stage"]) > 2 * chance
    search = bm25(
        [d["text"] for d in case.bed.corpus.documents],
        [f"{r['prompt']} {r['answer']}" for r in case.rows],
    )
    within = metrics.within(search, [row["candidates"] for row in case.rows])
    assert (
        metrics.recalls(within, case.proponents).mean() > 0.9
        and metrics.reciprocal_ranks(within, case.proponents).mean() > 0.9
    )


def test_the_notebooks_of_the_profile_run_from_files_to_records(study, monkeypatch):
    """Profile `bloom` as params.yaml has it, but for sizes and the models' names:
    notebooks 01 to 03 as `dvc repro` executes them."""
    root = Path.cwd()
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    profile = yaml.safe_load((ROOT / "params.yaml").read_text())["bloom"]
    settings = {
        name: value
        for name, value in study[1].items()
        if name not in ("models", "max_length", "finetuning", "folder")
    }
    profile["testbed"] |= {"seeds": [42, 43], "model": study[1]["models"], "max_length": 32}
    profile["testbed"]["corpus"] |= settings | {
        "folder": "data",
        "finetuning": profile["testbed"]["corpus"]["finetuning"] | study[1]["finetuning"],
    }
    profile["factors"] |= {"seeds": [42, 43], "documents": 30, "convergence": [8, 16]}
    profile["fact_tracing"] |= {"seeds": [42, 43], "reported_seeds": [42, 43], "dimension": 4}
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["bloom"], "bloom": profile}))
    monkeypatch.setenv("HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("01_testbed", "02_factors", "03_fact_tracing"):
        run.run(name, "bloom")
    records = json.loads((root / "results" / "bloom" / "reports" / "fact_tracing.json").read_text())
    assert {r["seed"] for r in records} == {42, 43} and {r["condition"] for r in records} == {
        "plain"
    }
    methods = {r["method"] for r in records}
    assert {
        *METHODS,
        "bm25",
        "tfidf",
        "embeddings",
        "trackstar",
        "hidden_mean",
        "multi_stage + bm25",
    } <= methods
    assert all(0 < r["mrr"] <= 1 and 0 <= r["recall_at_10"] <= 1 for r in records)
    texts = {row["text"] for row in given.prepared(42, **study[1]).corpus.documents}
    report = (root / "results" / "bloom" / "notebooks" / "03_fact_tracing.ipynb").read_text()
    # third-party texts stay out of what is committed
    assert not any(text in report for text in texts)
