"""Every number in README, docs/ and the index is that of a report or a benchmark, and has a line in
docs/claims.md: `support.phrases` says which."""

import json
import re
from collections import defaultdict

import pytest
from support import cards, claims, phrases, phrases_of_findings
from support.pages import FINDINGS, README, REPORTS, TEXT, benchmark, report
from support.quoted import HIGH, LOW, added, with_ends
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


def claimed():
    """(value, interval or error, worlds, file, key) of each line of the page, - for its minus."""
    for line in TEXT["claims.md"].replace("−", "-").splitlines():
        if line.startswith("| ") and "corpora, models" not in line:
            *_, value, error, worlds, file, key = line.strip("| ").split(" | ")
            yield float(value), error, worlds, file.strip("`"), key


def test_a_claim_has_a_file_and_its_worlds():
    for _, _, worlds, file, key in claimed():
        assert re.fullmatch(r"[1-9]\d*, [1-9]\d*", worlds), key
        assert (REPORTS / file).exists(), key


def test_every_interval_holds_its_own_value():
    found = [(value, json.loads(x), key) for value, x, *_, key in claimed() if x.startswith("[")]
    assert len(found) > 200
    for value, (low, high), key in found:
        assert low <= value <= high, key


def test_every_line_has_the_value_and_the_error_of_its_record():
    """Sign and unit too; of the lines whose key is one of a file of metrics."""
    held = 0
    for value, error, _, file, key in claimed():
        kept = leaves(json.loads((REPORTS / file).read_text())) if "metrics" in file else {}
        sign, key = -1 if key.startswith("-1 × ") else 1, key.removeprefix("-1 × ")
        number = next((kept[x] for x in (key, f"{key}, value", f"{key}, mean") if x in kept), None)
        if number is not None:
            held += 1
            assert value == round(sign * number, 3), key
            assert error != "–" or not kept.keys() & errors_of(key), key
    assert held > 150


def leaves(record, *keys):
    """{the keys to a number, joined as on the page: that number}; of a list by place, from 1."""
    if isinstance(record, list):
        record = dict(enumerate(record, 1))
    if not isinstance(record, dict):
        return {", ".join(map(str, keys)): record}
    return {k: x for name in record for k, x in leaves(record[name], *keys, name).items()}


def errors_of(key):
    """Where a file of metrics has the error of what stands at a key, if it has."""
    inside, _, name = key.rpartition(", ")
    shares = {f"{inside}, se"} if name in ("precision_at_5", "flipped_or_halved") else set()
    return shares | {f"{key}_error", f"{key}, error", f"{key}, low"}


def test_a_negated_number_has_its_interval_turned():
    whole, low, high = with_ends(0.07, -0.02, 0.16, 1, 1, "file", "key")
    assert (-whole).value == -0.07 and (-whole).error == "[−0.160, 0.020]"
    assert ((-low).value, (-low).part) == (0.02, HIGH)
    assert ((-high).value, (-high).part) == (-0.16, LOW)


def test_an_end_of_an_interval_has_a_line_only_where_its_number_is_not_beside_it():
    whole, low, high = with_ends(0.07, -0.02, 0.16, 1, 1, "file", "key")
    assert claims.alone([whole, low, high]) == [whole]
    assert claims.alone([-whole, -high, -low]) == [-whole]
    assert claims.alone([low, high]) == [low, high]
    assert claims.line("x", low) == f"| x | −0.020 | – | 1, 1 | `file` | key: {LOW} |"


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
    at_largest = {
        p: [largest_is_best(m, x) for m, x in found.items()] for p, found in tried.items()
    }
    assert all(at_largest["full"] + at_largest["webnlg"]) and not all(at_largest["stories"])


def largest_is_best(method, x):
    """Is the largest dimension that was tried of TrackStar or TRAK the best? True of others."""
    if not method.startswith(("trackstar", "trak")):
        return True
    of = [int(re.search(r"dimension (\d+)", s)[1]) for s in (x["best"], *x["settings"])]
    return of[0] == max(of)


# --------------------------------------------------------------------------------------- findings


def test_every_number_in_the_prose_of_the_findings_is_that_of_a_report():
    prose = "\n".join(x for x in FINDINGS.splitlines() if not x.startswith("|"))
    left = unquoted(prose, phrases_of_findings.findings())
    # The level of intervals; two thresholds of notebook 07; a damping.
    assert left == ["95 %", "95 %", "0.9", "80 %", "0.1"]
    sure = [added("matched", x) for x in ("pretraining_only", "finetuning_only")]
    assert all(mean.models == 10 and low.value > 0 for mean, low, _ in sure)


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.head)
def test_every_number_in_the_tables_of_the_findings_is_that_of_a_report(table):
    titles, found = cells(FINDINGS, table)
    assert len(found) >= 4
    for name, shown in found:
        numbers = table.row(table.records.get(name, name))
        expected = [table.cell(x).replace("-", "−") for x in numbers]
        assert [x.replace("-", "−") for x in shown] == expected, name
        assert len(titles) == len(shown), name


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
