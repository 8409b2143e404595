"""The explorer's page of a comparison: every method's ranking, and no words of others."""

import json
import re
from dataclasses import replace

import pytest

from msif.core import store
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.fact_tracing import comparison, pages
from msif.study.tracing.case import trained_case

SETTINGS = {"damping": 1e-3, "alpha": 0.1, "single_stage_damping": 1e-2, "batch_size": 16}


@pytest.fixture(scope="module")
def study():
    recipe = Recipe(
        generate(0, fine_tuned=3, held_out=2, objects=3, fillers=5),
        {"width": 16, "layers": 1, "heads": 2},
        {"epochs": 1, "rate": 3e-3},
        {"epochs": 1, "rate": 1e-3},
    )
    case = trained_case(recipe, 0, (), samples=(1, 1))
    return case, comparison.influences(case, None, SETTINGS)


def written(study, path, **options):
    pages.write(path, *study, "t", 1e-3, 0.1, each=2, count=3, **options)
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text())[1])


def test_every_method_ranks_the_documents_by_its_scores(study, tmp_path):
    data, (case, table) = written(study, tmp_path / "x.html"), study
    assert len(data["queries"]) == 2
    for n, q in enumerate(data["queries"]):
        best = [entry[0] for entry in q["rankings"]["multi-stage"][:3]]
        assert best == table["multi_stage/raw"][n].topk(3).indices.tolist()
        assert {int(d) for d in q["labels"]} <= set(case.rows[n]["proponents"])
        raw = table["multi_stage/raw"][n]  # effects are −raw / N
        parts = {int(d): part["score"] for d, part in q["parts"].items()}
        assert parts == pytest.approx({d: raw[d].item() for d in parts}, rel=1e-2, abs=1e-3)
    assert data["trained_on"] == len(case.bed.corpus.documents)
    first = next(iter(data["documents"]))
    words = "".join(data["documents"][first]["words"]).split()
    assert words == case.bed.corpus.documents[int(first)]["text"].split()


def test_texts_of_others_are_withheld(study, tmp_path):
    """Of a corpus that mixes both, what is made here is shown; of another, nothing."""
    case, table = study
    data = written(study, tmp_path / "x.html", show_texts=False)
    assert all("withheld" in "".join(d["words"]) for d in data["documents"].values())
    assert not any(q["prompt"] for q in data["queries"])
    corpus = case.bed.corpus
    queries = [row | {"about": "invented"} for row in corpus.queries]
    bed = replace(case.bed, corpus=replace(corpus, queries=queries))
    data = written((replace(case, bed=bed), table), tmp_path / "y.html", show_texts=False)
    assert all(q["prompt"] for q in data["queries"])
    for n, d in data["documents"].items():
        ours = corpus.documents[int(n)]["kind"] in pages.OURS
        assert ours != ("withheld" in "".join(d["words"]))


def test_of_a_large_model_documents_alone_are_taken_apart(study, tmp_path):
    """Its factors are read from disk; the parts of documents are the same."""
    case, table = study

    def on_disk(name):
        store.save(case.factors[name], tmp_path / name)
        return store.load(tmp_path / name, in_memory=False)

    large = replace(case, factors={name: on_disk(name) for name in case.factors})
    whole, few = (written((x, table), tmp_path / "x.html") for x in (case, large))
    for one, other in zip(whole["queries"], few["queries"]):
        for n, part in one["parts"].items():
            assert part["query"] and not other["parts"][n]["query"]
            assert other["parts"][n]["tokens"] == pytest.approx(part["tokens"], rel=1e-4)
