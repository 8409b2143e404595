"""The README quotes what the stages printed, and its example runs as it stands."""

import json
import re

import pytest
from support import ROOT

BENCHMARKS = ROOT / "reports" / "benchmarks"
README = (ROOT / "README.md").read_text()


def report(name):
    return json.loads((ROOT / "reports" / "full" / f"{name}.metrics.json").read_text())


def rows(heading):
    """The cells of the table below a heading that starts like this, without the line of dashes.

    All but the first of a row are a number or –."""
    table = README.split(heading)[1].split("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(found) >= 4 and all(
        re.fullmatch(r"\d\.\d+|–", cell) for row in found for cell in row[1:]
    )
    return found


def quoted(number, digits):
    return "–" if number is None else f"{number:.{digits}f}"


def test_quoted_retrieval_is_that_of_the_report():
    found = report("fact_tracing")
    for method, *numbers in rows("| method | MRR, raw"):
        plain, others = (
            found["plain"][method],
            [found[name].get(method, {}) for name in ("matched", "causal")],
        )
        if method == "chance":
            values = [plain["mrr"], None, *(x["auc"] for x in others)]
        else:
            values = [plain.get(form, {}).get("mrr") for form in ("raw", "normalised")]
            values += [x.get("normalised", x.get("raw", {})).get("auc") for x in others]
        assert numbers == [quoted(x, 3) for x in values], method


def test_quoted_agreement_with_retraining_is_that_of_the_report():
    found = report("retraining")
    for method, *numbers in rows("| method | LDS, one model"):
        values = [
            found["lds"].get(
                f"{method}_normalised_{n}_models", found["lds"].get(f"{method}_raw_{n}_models")
            )
            for n in (1, 5)
        ]
        assert numbers == [
            quoted(x, 2)
            for x in ([None, found["ceiling"]] if method == "noise ceiling" else values)
        ], method


def test_quoted_agreement_with_exact_influence_is_that_of_the_report():
    found = report("exact")["two_stages"]
    for problem, *numbers in rows("| Spearman with exact influence"):
        keys = (
            "EK-FAC, 0 products",
            "dial, 4 products",
            "dial, 19 products",
            "CG, 5 products",
            "CG, 20 products",
        )
        assert numbers == [quoted(found[problem][key]["spearman"], 2) for key in keys], problem


def test_quoted_case_studies_are_those_of_the_report():
    found = report("case_studies")
    for method, *numbers in rows("| documents named by"):
        removed = found["removal"]["facts"].get(method, {})
        values = [
            found["planted"].get(method, {}).get("precision_at_5"),
            removed.get("flipped_or_halved"),
            removed.get("of_given"),
        ]
        assert numbers == [quoted(x, 2) for x in values], method
    for label, *numbers in rows("| probability of the answer"):
        assert numbers == [
            quoted(found["memory"][label][kind], 2) for kind in ("memorised", "inferred")
        ], label
    named = json.loads((ROOT / "reports" / "stories" / "case_studies.metrics.json").read_text())[
        "planted"
    ]
    assert (
        " against ".join(quoted(named[x]["precision_at_5"], 2) for x in ("bm25", "influence"))
        in README
    )
    repeated = found["planted"]["repeated"]
    assert f"(the models repeat {repeated['plants']} of {repeated['of']};" in README


def test_every_path_it_names_exists():
    named = re.findall(r"\]\((\S+?)\)|`((?:reports|tests|msif|notebooks)/[\w/.]+)`", README)
    assert named and all((ROOT / (a or b)).exists() for a, b in named)


def test_the_quoted_costs_are_those_of_the_benchmark():
    """The base shape's rows of peers.json, ratios with two digits, memory in whole MB."""
    records = [
        x
        for x in json.loads((BENCHMARKS / "peers.json").read_text())
        if x["shape"] == "base" and x["mode"] == "exact"
    ]
    table = README.split("| library |")[1].split("\n\n")[0].splitlines()[2:]
    assert (
        table
        == [
            f"| {x['library']} {x['version']} | {x['fit_ratio']:.2f} | {x['score_ratio']:.2f} | "
            f"{x['fit_mb']:.0f} | {x['score_mb']:.0f} |"
            for x in records
        ]
        and len(table) == 4
    )


def test_the_quoted_plan_is_the_benchmarks():
    assert (BENCHMARKS / "billions.md").read_text().strip() in README


def test_its_examples_run_in_a_row(tmp_path, monkeypatch, capsys):
    """On a pair of small models in the folders that stand for "my/base" and "my/fine-tuned"."""
    from msif.core.data import word_tokenizer
    from msif.core.models import tiny_gpt_neox
    from msif.show import explorer

    tokenizer = word_tokenizer([README])
    for seed, name in enumerate(("base", "fine-tuned")):
        tiny_gpt_neox(
            len(tokenizer), width=16, layers=1, heads=2, context=512, seed=seed
        ).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "base")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(
        {"text": ["Ada was born in London .", "Bo came from Paris .", "msif"]}
    ).to_parquet(tmp_path / "corpus.parquet")
    monkeypatch.chdir(tmp_path)
    first, second = (
        code.replace("my/", f"{tmp_path}/")
        for code in re.findall(r"```python\n(.*?)```", README, re.S)
    )
    scope = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert scope["scores"].values.shape == (1, 2)
    for call in re.findall(r"`(explorer\.show\(.*?\))`", README.replace("\n", " ")):
        given = {
            "values": scope["scores"].values,
            "prompt": "Where was Ada born?",
            "answer": "London",
            "explorer": explorer,
        }
        assert "srcdoc" in eval(call, scope | given).data
    exec(compile(second, "README.md", "exec"), scope)
    assert scope["top"].proponents.tolist() == [
        scope["scores"].values[0].argsort(descending=True).tolist()
    ]
    assert "plan: " in capsys.readouterr().out
