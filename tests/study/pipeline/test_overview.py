"""The index links what there is and says what the numbers say.

It loads nothing, and is the same for the same reports.
"""

import base64
import json
import re
import shutil
from html import unescape

import pytest
from support import ROOT

from msif.study.pipeline import overview
from msif.study.pipeline.report import elsewhere

REPORTS = ROOT / "reports"
PNG = base64.b64encode(b"\x89PNG\r\n").decode()


@pytest.fixture
def folder(tmp_path):
    """A reports/ with one made-up profile, an explorer and a benchmark.

    The profile has a test-bed, and a notebook that has no numbers.
    """
    made = tmp_path / "reports"
    add(made, "tiny", "01_testbed", answered(0.86, before=0.01))
    add(made, "tiny", "07_case_studies")
    (made / "tiny" / "explorer.html").touch()
    (made / "tiny" / "facts.html").touch()
    (made / "benchmarks").mkdir()
    (made / "benchmarks" / "size.md").write_text("# Fits cost <2 passes\n\ntext")
    return made


def answered(after, before=0.0):
    return {"exact_match": {"pretrained": before, "finetuned": after, "chance": 0.05}}


def add(folder, profile, name, numbers=None, title="Does it *answer*?"):
    (folder / profile).mkdir(parents=True, exist_ok=True)
    start = f"# 1. {title}\n\n**Question.** Is `a` < b\nin *both* stages?\n\nMore."
    outputs = [{"output_type": "stream", "text": "x"}, {"data": {"image/png": PNG}}]
    cells = [
        {"source": start.splitlines(keepends=True)},
        {"source": "", "outputs": outputs},
    ]
    (folder / profile / f"{name}.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / profile / f"{name}.html").touch()
    if numbers is not None:
        (folder / profile / f"{name.split('_', 1)[1]}.metrics.json").write_text(json.dumps(numbers))


def text(html):
    return unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


def broken(html, folder):
    links = re.findall(r'href="([^"#]+)"', html)
    assert links
    return [link for link in links if not (folder / link).is_file()]


def test_every_link_resolves_and_every_report_is_linked(folder):
    html = overview.page(folder)
    assert broken(html, folder) == []
    for path in (
        "tiny/01_testbed.html",
        "tiny/07_case_studies.html",
        "tiny/explorer.html",
        "tiny/facts.html",
        "benchmarks/size.md",
    ):
        assert f'href="{path}"' in html


def test_the_page_loads_nothing_and_is_the_same_again(folder):
    html = overview.page(folder)
    assert html == overview.page(folder)
    assert elsewhere(html) == []
    assert "<script" not in html and "http" not in html
    assert f"data:image/png;base64,{PNG}" in html
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_the_page_can_be_read_without_seeing_it(folder):
    html = overview.page(folder)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert '<a class="skip" href="#reports">' in html and '<main id="reports">' in html
    labels = re.findall(r'aria-labelledby="([^"]+)"', html)
    assert labels and all(f'id="{label}"' in html for label in labels)
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    assert len(alts) == html.count("<img") == 2
    assert alts[0].startswith("Key figure of the report, profile tiny. Of facts that fine-tuning")
    assert alts[1] == "Key figure of the report, profile tiny."
    assert "<caption>" in html


def test_what_stands_in_the_reports_is_shown_as_text(folder):
    add(folder, "tiny", "01_testbed", answered(0.86), title="<script>\"x\" & 'y'</script>")
    (folder / "benchmarks" / "size.md").write_text("# <b>bold</b>")
    html = overview.page(folder)
    assert "<script" not in html and "<b>" not in html
    assert "<script>\"x\" & 'y'</script>" in text(html) and "<b>bold</b>" in text(html)


def test_question_and_title_are_the_notebooks_own_as_text(folder):
    html = overview.page(folder)
    assert "1. Does it answer?" in text(html)
    assert "Is a < b in both stages?" in text(html) and "Is a &lt; b" in html
    assert "More." not in html


def test_a_png_of_the_stage_goes_before_figures_of_the_notebook(folder):
    (folder / "tiny" / "testbed.png").write_bytes(b"key figure")
    assert base64.b64encode(b"key figure").decode() in overview.page(folder)


def test_a_changed_number_changes_the_sentence_and_a_contrary_one_turns_it(folder):
    html = overview.page(folder)
    assert "86% are answered after it" in text(html)
    assert "they come from pre-training" in html
    add(folder, "tiny", "01_testbed", answered(0.12, before=0.01))
    html = overview.page(folder)
    assert "12% are answered after it" in text(html)
    assert "too little above the rest" in html
    assert "they come from pre-training" not in html


def test_negative_numbers_have_a_minus_sign(folder):
    step = {"value": -0.5, "error": 0.1}
    kinds = ("first by influence", "first by BM25", "at random", "last by influence")
    add(folder, "tiny", "08_your_models", {"step": dict.fromkeys(kinds, step)})
    html = overview.page(folder)
    assert '<span class="number">−0.50 nats</span>' in html
    assert "(−0.50 ± 0.10 nats)" in html and "log-probability" in html


def test_full_heads_the_page_and_others_are_in_the_table(folder):
    assert "Profile tiny" in overview.page(folder) and ">full<" not in overview.page(folder)
    add(folder, "full", "01_testbed", answered(0.5))
    add(folder, "another", "01_testbed", answered(0.4))
    html = overview.page(folder)
    assert "Profile full" in html
    assert "50% are answered" in text(html) and "86% are answered" not in text(html)
    rows = re.findall(r'<td><a href="(\w+)/01_testbed.html">(\d+%)', html)
    assert rows == [("full", "50%"), ("tiny", "86%"), ("another", "40%")]
    shutil.rmtree(folder / "another")
    assert "another" not in overview.page(folder)


def test_any_profile_will_do(folder):
    (folder / "tiny").rename(folder / "another")
    shutil.rmtree(folder / "benchmarks")
    for name in ("explorer.html", "facts.html"):
        (folder / "another" / name).unlink()
    html = overview.page(folder)
    assert "Profile another" in html and broken(html, folder) == []
    for gone in ("tiny", "Influence explorer", "Cost and precision"):
        assert gone not in html


def test_a_notebook_without_numbers_is_listed_without(folder):
    html = overview.page(folder)
    assert '<td><a href="tiny/07_case_studies.html">report</a></td>' in html
    assert html.count('class="number"') == 1


def test_reports_that_are_not_there_or_lack_a_number_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="holds no report: .*make study"):
        overview.page(tmp_path / "nothing")
    add(folder, "tiny", "01_testbed", {"exact_match": {"pretrained": 0.01}})
    named = r"testbed.metrics.json: KeyError: 'finetuned'; .*run it again"
    with pytest.raises(ValueError, match=named):
        overview.page(folder)


def test_the_page_of_the_reports_that_are_there():
    html = overview.page(REPORTS)
    assert broken(html, REPORTS) == []
    assert elsewhere(html) == [] and "<script" not in html
    assert html == overview.page(REPORTS)
