"""The index links what there is, says what the numbers say, loads nothing, and is the same for the same reports."""

import base64
import json
import re
import shutil
from html import unescape

import pytest
from support import ROOT

from msif.study.pipeline import overview
from msif.study.pipeline.findings import FINDINGS, against
from msif.study.pipeline.report import elsewhere

REPORTS = ROOT / "reports"
PNG = base64.b64encode(b"\x89PNG\r\n").decode()


@pytest.fixture
def folder(tmp_path):
    """reports/ with one made-up profile (testbed, and a notebook that has no numbers), an explorer and a benchmark."""
    made = tmp_path / "reports"
    add(
        made,
        "tiny",
        "01_testbed",
        {"exact_match": {"pretrained": 0.01, "finetuned": 0.86, "chance": 0.05}},
    )
    add(made, "tiny", "07_case_studies")
    (made / "tiny" / "explorer.html").touch()
    (made / "benchmarks").mkdir()
    (made / "benchmarks" / "size.md").write_text("# Fits cost <2 passes\n\ntext")
    return made


def add(folder, profile, name, numbers=None, title="Does it *answer*?"):
    (folder / profile).mkdir(parents=True, exist_ok=True)
    cells = [
        {
            "source": [
                f"# 1. {title}\n",
                "\n",
                "**Question.** Is `a` < b\n",
                "in *both* stages?\n",
                "\n",
                "More.",
            ]
        },
        {
            "source": "",
            "outputs": [{"output_type": "stream", "text": "x"}, {"data": {"image/png": PNG}}],
        },
    ]
    (folder / profile / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / profile / f"{name}.html").touch()
    if numbers is not None:
        (folder / profile / f"{name.split('_', 1)[1]}.metrics.json").write_text(json.dumps(numbers))


def text(html):
    return unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


def broken(html, folder):
    links = [link for link in re.findall(r'href="([^"#]+)"', html)]
    assert links
    return [link for link in links if not (folder / link).is_file()]


def test_every_link_resolves_and_every_report_is_linked(folder):
    html = overview.page(folder)
    assert broken(html, folder) == []
    for path in (
        "tiny/01_testbed.html",
        "tiny/07_case_studies.html",
        "tiny/explorer.html",
        "benchmarks/size.md",
    ):
        assert f'href="{path}"' in html


def test_the_page_loads_nothing_and_is_the_same_again(folder):
    html = overview.page(folder)
    assert (
        elsewhere(html) == []
        and "<script" not in html
        and "http" not in html
        and html == overview.page(folder)
    )
    assert (
        f"data:image/png;base64,{PNG}" in html
        and "prefers-color-scheme: dark" in html
        and 'name="viewport"' in html
    )


def test_question_and_title_are_the_notebooks_own_as_text(folder):
    html = overview.page(folder)
    assert (
        "1. Does it answer?" in text(html)
        and "Is a < b in both stages?" in text(html)
        and "Is a &lt; b" in html
        and "More." not in html
    )


def test_a_png_of_the_stage_goes_before_figures_of_the_notebook(folder):
    (folder / "tiny" / "testbed.png").write_bytes(b"key figure")
    assert base64.b64encode(b"key figure").decode() in overview.page(folder)


def test_a_changed_number_changes_the_sentence_and_a_contrary_one_turns_it(folder):
    assert "86% are answered after it" in text(
        overview.page(folder)
    ) and "they come from pre-training" in overview.page(folder)
    add(
        folder,
        "tiny",
        "01_testbed",
        {"exact_match": {"pretrained": 0.01, "finetuned": 0.12, "chance": 0.05}},
    )
    html = overview.page(folder)
    assert (
        "12% are answered after it" in text(html)
        and "too little above the rest" in html
        and "they come from pre-training" not in html
    )


def test_full_heads_the_page_and_others_are_in_the_table(folder):
    assert "Profile tiny" in overview.page(folder) and ">full<" not in overview.page(folder)
    add(
        folder,
        "full",
        "01_testbed",
        {"exact_match": {"pretrained": 0.0, "finetuned": 0.5, "chance": 0.05}},
    )
    add(
        folder,
        "another",
        "01_testbed",
        {"exact_match": {"pretrained": 0.0, "finetuned": 0.4, "chance": 0.05}},
    )
    html = overview.page(folder)
    assert (
        "Profile full" in html
        and "50% are answered" in text(html)
        and "86% are answered" not in text(html)
    )
    rows = re.findall(r'<td><a href="(\w+)/01_testbed.html">(\d+%)', html)
    assert rows == [("full", "50%"), ("tiny", "86%"), ("another", "40%")]
    shutil.rmtree(folder / "another")
    assert "another" not in overview.page(folder)


def test_a_notebook_without_numbers_is_listed_without(folder):
    html = overview.page(folder)
    assert (
        '<td><a href="tiny/07_case_studies.html">report</a></td>' in html
        and html.count('class="number"') == 1
    )


def test_reports_that_are_not_there_or_lack_a_number_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="holds no report: .*make study"):
        overview.page(tmp_path / "nothing")
    add(folder, "tiny", "01_testbed", {"exact_match": {"pretrained": 0.01}})
    with pytest.raises(
        ValueError, match=r"testbed.metrics.json: KeyError: 'finetuned'; .*run it again"
    ):
        overview.page(folder)


@pytest.mark.parametrize(
    "lead, error, said",
    [
        (0.3, 0.1, "ahead of BM25 by 0.300 ± 0.100"),
        (-0.3, 0.1, "behind BM25 by 0.300 ± 0.100"),
        (0.2, 0.1, "level with BM25 (+0.200 ± 0.100)"),
        (-0.1, 0.1, "level with BM25 (-0.100 ± 0.100)"),
    ],
)
def test_a_difference_reads_as_it_is(lead, error, said):
    assert against(lead, error, "BM25") == said


def committed(stage):
    return json.loads((REPORTS / "full" / f"{stage}.metrics.json").read_text())


def test_fact_tracing_says_where_it_is_behind_and_what_a_stage_costs():
    numbers = committed("fact_tracing")
    for mean, said in (
        (0.1, "ahead of sentence embeddings by"),
        (-0.1, "behind sentence embeddings by"),
        (0.0, "level with sentence embeddings"),
    ):
        numbers["lead"]["plain"] = {"over": "embeddings/raw", "mean": mean, "se": 0.01}
        assert f": {said}" in FINDINGS["fact_tracing"](numbers)[2]
    for low, high, verdict in (
        (0.1, 0.2, "costs"),
        (-0.2, -0.1, "gains"),
        (-0.1, 0.1, "makes no sure difference to"),
    ):
        numbers["paired"]["multi_stage - pretraining_only"]["raw"] = {
            "mean": (low + high) / 2,
            "low": low,
            "high": high,
        }
        assert (
            f"Leaving out fine-tuning's curvature {verdict} raw MRR"
            in FINDINGS["fact_tracing"](numbers)[2]
        )


def test_validation_says_above_and_below():
    numbers = committed("exact")
    assert (
        "0.91 within 20: above plain conjugate gradients' 0.57, and above their 0.68"
        in FINDINGS["exact"](numbers)[2]
    )
    numbers["two_stages"]["test-bed"]["CG, 20 products"]["spearman"] = 0.99
    assert "and below their 0.99" in FINDINGS["exact"](numbers)[2]
    numbers = committed("scalability")
    numbers["0.1 x mean"]["gradient dot"]["0"]["spearman"] = 0.9
    assert "below the 0.90 of gradient dot" in FINDINGS["scalability"](numbers)[2]
    numbers = committed("retraining")
    assert "below the 0.66 of counting" in FINDINGS["retraining"](numbers)[2]
    numbers["lds"]["statements_raw_5_models"] = 0.1
    assert "above the 0.10 of counting" in FINDINGS["retraining"](numbers)[2]


def test_case_studies_may_lack_a_study():
    planted = {"planted": {"influence": {"precision_at_5": 0.92}, "bm25": {"precision_at_5": 0.1}}}
    removal = {
        "removal": {
            "facts": {
                "influence": {"flipped_or_halved": 0.3, "answers": 40},
                "bm25": {"flipped_or_halved": 0.5},
                "random": {"flipped_or_halved": 0.1},
            }
        }
    }
    assert FINDINGS["case_studies"]({}) is None
    assert (
        FINDINGS["case_studies"](planted)[0] == "92%"
        and "above BM25's 10%" in FINDINGS["case_studies"](planted)[2]
    )
    assert "30% of 40 right answers" in FINDINGS["case_studies"](removal)[2]
    assert (
        "below the 50% of BM25's first, above the 10% of random ones"
        in FINDINGS["case_studies"](planted | removal)[2]
    )


def test_a_step_that_lowers_the_answer_is_said_to():
    step = lambda x: {
        "step": {
            kind: {"value": x, "error": 0.1}
            for kind in ("first by influence", "first by BM25", "at random", "last by influence")
        }
    }
    assert [
        re.search(
            "first (raises|lowers|does not surely change) ", FINDINGS["your_models"](step(x))[2]
        )[1]
        for x in (0.5, -0.5, 0.1)
    ] == ["raises", "lowers", "does not surely change"]


def test_the_committed_page_is_that_of_the_committed_reports():
    html = (REPORTS / "index.html").read_text("utf-8")
    assert html == overview.page(REPORTS), "run: python -m msif.study.pipeline.overview"
    assert broken(html, REPORTS) == [] and elsewhere(html) == []
