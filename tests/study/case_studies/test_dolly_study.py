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


def texts_in(page):
    """The documents of an explorer's page."""
    data = json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.S)[1])
    return {"".join(d["words"]) for d in data["documents"].values()}


def test_the_notebook_of_the_profile_runs_from_files_to_the_explorer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = small_pair.build(tmp_path, "bfloat16")
    pair["search"] |= {"first": 5, "random": 3}
    pair["generation"] |= {"samples": 0}
    pair["corpora"] = [x | {"limit": 8} for x in pair["corpora"]]
    profile = yaml.safe_load((ROOT / "params.yaml").read_text())["dolly"]["case_studies"]
    profile |= {
        "pair": profile["pair"] | pair,
        "at_once": 2,
        "fit": profile["fit"] | {"memory": "4GiB"},
    }
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"profiles": [], "dolly": {"case_studies": profile}})
    )
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    run.run("07_case_studies", "dolly")
    executed = (tmp_path / "results/dolly/notebooks/07_case_studies.ipynb").read_text()
    numbers = json.loads((tmp_path / "results/dolly/reports/case_studies.metrics.json").read_text())
    assert (
        -1
        <= numbers["settings"]["least_spearman"]
        < 1
        <= numbers["sparsity"]["documents_that_hold_half"]
    )
    public, own = (
        path.read_text()
        for path in (
            tmp_path / "results/dolly/reports/explorer.html",
            tmp_path / "results/dolly/case_studies/explorer.html",
        )
    )
    texts = {d["text"] for d in prepared(0, **profile["pair"]).corpus.documents}
    # third-party texts stay out of what is committed
    assert texts_in(own) and texts_in(own) <= texts
    assert all("withheld" in text for text in texts_in(public)) and not any(
        text[:40] in executed for text in texts
    )
    assert report.elsewhere(public) == [] and "GiB" in executed
