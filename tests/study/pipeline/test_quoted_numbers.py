"""Every number in README, docs/ and the index is that of a report or a benchmark, and has a line in
docs/claims.md: `support.phrases` says which."""

import re
from collections import defaultdict

import pytest
from support import cards, claims, phrases, phrases_of_findings
from support.pages import FINDINGS, README, REPORTS, TEXT, benchmark, report
from support.quoted import added
from support.quoted_tables import cells, tables

from msif.study.pipeline import front, traced
from msif.study.pipeline.findings import FINDINGS as FINDINGS_OF

START, END = front.MARKS
GENERATED = README.split(START)[1].split(END)[0]
SHOWN = README.split("## What it finds")[1].split("## ")[0].replace(GENERATED, "")


def unquoted(text, phrases):
    """The fractions and percentages of a text that are in none of the phrases, all of which it
    must have, line breaks apart."""
    text = " ".join(text.split())
    for said in map(str, phrases):
        assert said in text, said
        text = text.replace(said, "", 1)
    return re.findall(r"\d*\.\d+|\d+ %", text)


def test_the_page_of_claims_is_as_it_is_made():
    made = claims.page(FINDINGS)
    assert made == TEXT["claims.md"], "python tests/support/claims.py writes it"


def test_a_claim_has_a_file_and_its_worlds():
    for line in TEXT["claims.md"].splitlines():
        if line.startswith("| ") and "corpora, models" not in line:
            *_, worlds, file, _ = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert re.fullmatch(r"[1-9]\d*, [1-9]\d*", worlds), line
            assert (REPORTS / file.strip("`")).exists(), line


# ----------------------------------------------------------------------------------------- README


def test_every_number_of_the_readme_is_that_of_a_report():
    left = unquoted(SHOWN, phrases.readme())
    assert left == ["0.5", "95 %"]  # chance, and the level of the intervals


def test_every_number_below_the_front_table_is_that_of_a_report():
    _, *below = GENERATED.strip().split("\n\n")
    assert unquoted("\n".join(below), phrases.of_answers()) == ["95 %"]  # the intervals' level


def test_what_the_readme_says_of_the_table_without_a_number_is_so():
    rows = traced.rows(REPORTS)
    search = {(r.profile, r.condition): r.cells["text search"].mean for r in rows if not r.over}
    for row in rows:
        others = [x.mean for name, x in row.cells.items() if x and name != "text search"]
        found, best = search[row.profile, row.condition], max(others)
        assert row.condition != "plain" or found > best, row
        assert row.condition != "named" or found >= best, row
    assert {row.profile for row in rows if row.profile == "bloom"} == set()  # the paper's
    tried = {p: report("fact_tracing", p)["tuning"] for p in ("full", "stories", "webnlg")}
    counts = {p: {x["tried"] for x in found.values()} for p, found in tried.items()}
    assert counts == {"full": {12}, "stories": {12}, "webnlg": {6}}
    assert "trackstar_trajectory" in tried["full"]
    lead = report("case_studies")["leads"]["facts"]["bm25"]
    assert lead["low"] <= 0 <= lead["high"]  # too few answers to tell
    for method, x in ((m, x) for found in tried.values() for m, x in found.items()):
        if method.startswith(("trackstar", "trak")):
            of = [int(re.search(r"dimension (\d+)", s)[1]) for s in (x["best"], *x["settings"])]
            assert of[0] == max(of), method  # the largest is best, where there are several


# --------------------------------------------------------------------------------------- findings


def test_every_number_in_the_prose_of_the_findings_is_that_of_a_report():
    prose = "\n".join(x for x in FINDINGS.splitlines() if not x.startswith("|"))
    left = unquoted(prose, phrases_of_findings.findings())
    assert left == ["95 %", "95 %", "0.1"]  # the level of intervals, and a damping
    sure = [added("matched", x) for x in ("pretraining_only", "finetuning_only")]
    assert all(mean.models == 10 and low.value > 0 for mean, low, _ in sure)


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.head)
def test_every_number_in_the_tables_of_the_findings_is_that_of_a_report(table):
    titles, found = cells(FINDINGS, table)
    assert len(found) >= 4
    for name, shown in found:
        numbers = table.row(table.records.get(name, name))
        expected = ["–" if x.value is None else f"{x.value:.{table.digits}f}" for x in numbers]
        assert shown == expected and len(titles) == len(shown), name


# ------------------------------------------------------------------------------------------ index


def test_every_card_of_full_has_its_claims():
    there = {name for name in FINDINGS_OF if (REPORTS / "full" / f"{name}.metrics.json").exists()}
    assert set(cards.STAGES) == there


@pytest.mark.parametrize("stage", cards.STAGES)
def test_every_number_of_a_card_of_the_index_is_that_of_a_claim_in_its_place(stage):
    """Words and numbers, so that neither a sign nor two numbers can change places."""
    finding = FINDINGS_OF[stage](report(stage))
    said = re.sub(r"(\d)%", r"\1 %", re.sub(r"(?<!\w)-(?=\d)", "−", finding.claim))
    assert [x for x in unquoted(said, cards.phrases(stage)) if x not in LEVELS[stage]] == []
    known = {f"{n:{form}}" for n in cards.numbers(stage) for form in ("%", "1", "2", "3")}
    heads = re.findall(r"\d+\.\d+|\d+%", f"{finding.number} {finding.what}")
    assert {x.replace("%", " %") for x in heads} - known - {"1 %"} == set()


# What is no number of a record: a damping, in the sentence of notebook 5.
LEVELS = defaultdict(tuple, scalability=("0.1",))

# ------------------------------------------------------------------------------------- benchmarks


def test_the_quoted_costs_are_those_of_the_benchmark():
    """The base shape's rows of peers.json, ratios with two digits, memory in whole MB."""
    records = [x for x in benchmark("peers") if x["shape"] == "base" and x["mode"] == "exact"]
    table = TEXT["benchmarks.md"].split("| library |")[1].split("\n\n")[0].splitlines()[2:]
    assert (
        table
        == [
            f"| {x['library']} {x['version']} | {x['fit_ratio']:.2f} | {x['score_ratio']:.2f} | "
            f"{x['fit_mb']:.0f} | {x['score_mb']:.0f} |"
            for x in records
        ]
        and len(table) == 4
    )
    ours, theirs = (
        "{score_ratio_low:.2f} to {score_ratio_high:.2f}".format(**x) for x in records[:2]
    )
    said = f"msif's cost of scoring varies from {ours}, kronfluence's from {theirs};"
    assert said in " ".join(TEXT["benchmarks.md"].split())


def test_the_quoted_plan_is_the_benchmarks():
    assert (REPORTS / "benchmarks" / "billions.md").read_text().strip() in TEXT["large.md"]


def test_the_measured_billions_are_the_benchmarks():
    found = benchmark("billions_measured")
    text = " ".join(TEXT["large.md"].split())
    for phrase in (
        f"--tokens {found['tokens']} ",
        f"fitted {found['layers']} of the 128 layers in {found['seconds, fit']:.0f} s",
        f"at {found['flop per second, fit']:.1e} FLOP/s".replace("e+", "e"),
        f"It took {found['bytes, measured'] / 1e9:.1f} GB of the GPU where "
        f"{found['bytes, planned'] / 1e9:.1f} were planned",
    ):
        assert phrase in text, phrase
