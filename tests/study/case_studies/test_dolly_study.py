"""Profile `dolly` as params.yaml has it, but for sizes and the models' names:
notebook 07 as `dvc repro` executes it, on a pair of dolly's architecture."""

import json
import re
import shutil

import pytest
import yaml
from support import ROOT, small_pair

from msif.study.beds.pairs import prepared
from msif.study.pipeline import report, run

pytestmark = [pytest.mark.slow, small_pair.needs_data]


def data_of(page):
    """What an explorer's page knows."""
    return json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.S)[1])


def texts_in(page):
    """The documents of an explorer's page."""
    return {"".join(d["words"]) for d in data_of(page)["documents"].values()}


def elsewhere(folder):
    """Profile `dolly`: its pair in small."""
    pair = small_pair.build(folder, "bfloat16")
    pair["search"] |= {"first": 5, "random": 3}
    pair["generation"] |= {"samples": 0}
    return pair | {"corpora": [x | {"limit": 8} for x in pair["corpora"]]}


@pytest.mark.parametrize(
    "name, built", [("dolly", elsewhere), ("smollm", small_pair.to_tune)], ids=["dolly", "smollm"]
)
def test_the_notebook_of_the_profile_runs_from_files_to_the_explorer(
    name, built, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    profile = yaml.safe_load((ROOT / "params.yaml").read_text())[name]["case_studies"]
    profile |= {
        "pair": profile["pair"] | built(tmp_path),
        "at_once": 2,
        "fit": profile["fit"] | {"memory": "4GiB"},
    }
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"profiles": [], name: {"case_studies": profile}})
    )
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    run.run("07_case_studies", name)
    results = tmp_path / "results" / name
    executed = (results / "notebooks/07_case_studies.ipynb").read_text()
    numbers = json.loads((results / "reports/case_studies.metrics.json").read_text())
    assert (
        -1
        <= numbers["settings"]["least_spearman"]
        < 1
        <= numbers["sparsity"]["documents_that_hold_half"]
    )
    public, own = (
        path.read_text()
        for path in (results / "reports/explorer.html", results / "case_studies/explorer.html")
    )
    bed = prepared(0, **profile["pair"])
    texts = {d["text"] for d in bed.corpus.documents}
    # third-party texts stay out of what is committed
    assert texts_in(own) and texts_in(own) <= texts
    assert all("withheld" in text for text in texts_in(public)) and not any(
        text[:40] in executed for text in texts
    )
    # who asked and what was said is no third party's; a title says which document it is
    assert [q["prompt"] for q in data_of(public)["queries"]] == [
        q["prompt"] for q in data_of(own)["queries"]
    ]
    assert all(q["prompt"] and q["answer"] for q in data_of(public)["queries"])
    titles = {f"{d['kind']}: {d['title']}" for d in bed.corpus.documents}
    assert {d["source"] for d in data_of(public)["documents"].values()} <= titles
    assert report.elsewhere(public) == [] and "GiB" in executed
    assert executed.count("median self-influence of all") == len(bed.queries), "a table each"
