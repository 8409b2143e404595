"""Every number in README and docs/ is that of a report or a benchmark."""

import re

from support.pages import README, REPORTS, TEXT, benchmark, report

# --------------------------------------------------------------------------------------- tables


def rows(page, heading):
    """The cells of the table below a heading that starts like this, without the line of dashes.

    All but the first of a row are a number or –."""
    table = TEXT[page].split(heading)[1].split("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(found) >= 4 and all(
        re.fullmatch(r"\d\.\d+|–", cell) for row in found for cell in row[1:]
    )
    return found


def quoted(number, digits=2):
    return "–" if number is None else f"{number:.{digits}f}"


def test_quoted_retrieval_is_that_of_the_report():
    found = report("fact_tracing")
    for method, *numbers in rows("findings.md", "| method | MRR, raw"):
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


def lds(found, method, models):
    for form in ("normalised", "raw"):
        if (value := found["lds"].get(f"{method}_{form}_{models}_models")) is not None:
            return value
    return None


def test_quoted_agreement_with_retraining_is_that_of_the_report():
    found = report("retraining")
    for method, *numbers in rows("findings.md", "| method | LDS, one model"):
        values = [lds(found, method, n) for n in (1, 5)]
        ceiling = [None, found["ceiling"]]
        expected = ceiling if method == "noise ceiling" else values
        assert numbers == [quoted(x) for x in expected], method


def test_quoted_agreement_with_exact_influence_is_that_of_the_report():
    found = report("exact")["two_stages"]
    for problem, *numbers in rows("findings.md", "| Spearman with exact influence"):
        keys = (
            "EK-FAC, 0 products",
            "dial, 4 products",
            "dial, 19 products",
            "CG, 5 products",
            "CG, 20 products",
        )
        assert numbers == [quoted(found[problem][key]["spearman"]) for key in keys], problem


def test_quoted_case_studies_are_those_of_the_report():
    found = report("case_studies")
    for method, *numbers in rows("findings.md", "| documents named by"):
        removed = found["removal"]["facts"].get(method, {})
        values = [
            found["planted"].get(method, {}).get("precision_at_5"),
            removed.get("flipped_or_halved"),
            removed.get("of_given"),
        ]
        assert numbers == [quoted(x) for x in values], method
    for label, *numbers in rows("findings.md", "| probability of the answer"):
        assert numbers == [
            quoted(found["memory"][label][kind]) for kind in ("memorised", "inferred")
        ], label


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


def test_the_quoted_plan_is_the_benchmarks():
    assert (REPORTS / "benchmarks" / "billions.md").read_text().strip() in TEXT["large.md"]


# ---------------------------------------------------------------------------------------- prose


def unquoted(text, phrases):
    """The fractions and percentages of a text that are in none of the phrases, all of which it
    must have, line breaks apart."""
    text = " ".join(text.split())
    for phrase in phrases:
        assert phrase in text, phrase
        text = text.replace(phrase, "", 1)
    return re.findall(r"\d*\.\d+|\d+ %", text)


def test_every_number_of_the_readme_is_that_of_a_report():
    facts, retraining = report("fact_tracing"), report("retraining")
    lost, exact = report("case_studies")["removal"]["facts"], report("exact")["two_stages"]

    def auc(condition, method, form="raw"):
        return quoted(facts[condition][method][form]["auc"])

    def mrr(method, form="raw"):
        return quoted(facts["plain"][method][form]["mrr"])

    def influence(number, *given):
        """Averaged over checkpoints, and at one of them."""
        two = [number(*given, x, "normalised") for x in ("multi_stage_trajectory", "multi_stage")]
        return "{} ({})".format(*two)

    def lead(condition):
        """Over the best rival, which must be TrackStar."""
        found = facts["lead"][condition]
        assert found["over"] == "trackstar/raw"
        return f"{quoted(found['mean'])} ± {quoted(found['se'])} more than TrackStar"

    def share(method):
        return f"{lost[method]['flipped_or_halved']:.0%}".replace("%", " %")

    real = [report("fact_tracing", profile) for profile in ("webnlg", "stories")]

    def tried(profile, method):
        assert profile["tuning"][method]["tried"] == 6
        return quoted(profile["tuning"][method]["mrr"])

    one, other = [
        [tried(x, m) for m in ("multi_stage", "single_stage_finetuned", "trackstar")] for x in real
    ]
    paths = [quoted(x["plain"]["multi_stage_trajectory"]["normalised"]["mrr"]) for x in real]
    words = [quoted(x["plain"]["tfidf"]["raw"]["mrr"]) for x in real]
    two, exchanged = exact["GPT-NeoX, over-fitted"], report("retraining")["exchanged"]
    phrases = [
        f"1 / rank: {mrr('embeddings')}), influence nearly so: {influence(mrr)}.",
        f"in {influence(auc, 'matched')} of pairs: {lead('matched')}, the best rival; "
        f"embeddings {auc('matched', 'embeddings')}, BM25 {auc('matched', 'bm25')}, a rule that "
        f"is told the right order {auc('matched', 'word_order')}.",
        f"it gets {influence(auc, 'causal')}: {lead('causal')}; embeddings "
        f"{auc('causal', 'embeddings')}, that rule {auc('causal', 'word_order')}.",
        "on `webnlg`, influence has an MRR of {}, single-stage influence {}, TrackStar {};".format(
            *one
        ),
        "on `stories` {}, {} and {}.".format(*other),
        "influence has {} and {}.".format(*paths),
        "TF-IDF has {} and {}.".format(*words),
        f"MRR {mrr('multi_stage')}; without fine-tuning's curvature {mrr('pretraining_only')}, "
        f"without pre-training's {mrr('finetuning_only')}, without both {mrr('gradient_dot')}.",
        f"{quoted(lds(retraining, 'multi_stage', 1))} for one model, "
        f"{quoted(lds(retraining, 'multi_stage', 5))} averaged over five, where "
        f"{quoted(retraining['ceiling'])} is",
        f"BM25 has {quoted(lds(retraining, 'bm25', 5))}.",
        f"{share('influence')} of {lost['influence']['answers']} right answers are lost; "
        f"{share('bm25')} by BM25's five, a difference that 40 answers do not settle; "
        f"{share('random')} by random ones.",
        f"(Spearman {quoted(two['EK-FAC, 0 products']['spearman'])})",
        f"take {quoted(exchanged['multi_stage'])} for one model to "
        f"{quoted(exchanged['multi_stage_refined'])}.",
    ]
    findings = README.split("## What it finds")[1].split("## ")[0]
    assert not unquoted(findings, phrases)

    caption = README.split("](reports/full/fact_tracing.png)")[1].split("## ")[0]
    notebook = (REPORTS / "full" / "03_fact_tracing.ipynb").read_text("utf-8")
    asked, candidates = re.search(r"(\d+) queries that .*?, (\d+) candidate", notebook).groups()
    phrases = [
        f"of {int(candidates):,} documents",
        f"each of {asked} answers",
        f"gets {mrr('multi_stage_trajectory', 'normalised')}, sentence embeddings "
        f"{mrr('embeddings')} for",
    ]
    assert unquoted(caption, phrases) == ["1.0"]  # what the scale ends in


def test_every_number_in_the_prose_of_the_findings_is_that_of_a_report():
    exchanged, cases = report("retraining")["exchanged"], report("case_studies")
    stories = report("case_studies", "stories")["planted"]
    leads = report("fact_tracing")["lead"]

    def lead(condition, rival):
        found = leads[condition]
        assert found["over"] == f"{rival}/raw"
        return f"{quoted(found['mean'], 3)} ± {quoted(found['se'], 3)}".replace("-", "−")

    repeated, answers = cases["planted"]["repeated"], cases["removal"]["facts"]["influence"]
    phrases = [
        f"LDS {quoted(exchanged['multi_stage_refined'])} in place of "
        f"{quoted(exchanged['multi_stage'])}",
        " against ".join(quoted(stories[x]["precision_at_5"]) for x in ("bm25", "influence")),
        f"(the models repeat {repeated['plants']} of {repeated['of']};",
        f"for each of {answers['answers']} right answers",
        f"plain {lead('plain', 'embeddings')} (embeddings), same words "
        f"{lead('matched', 'trackstar')} (TrackStar), causal {lead('causal', 'trackstar')}",
        "with 95 % intervals above 0",
        "at damping 0.1 × the mean eigenvalue",
    ]
    prose = "\n".join(x for x in TEXT["findings.md"].splitlines() if not x.startswith("|"))
    assert not unquoted(prose, phrases)
    paired = report("fact_tracing")["paired"]
    other = ("pretraining_only", "finetuning_only", "gradient_dot")
    lows = {
        form: [paired[f"multi_stage - {x}"][form]["low"] > 0 for x in other]
        for form in ("raw", "normalised")
    }
    assert lows == {"raw": [True] * 3, "normalised": [False, False, True]}


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
