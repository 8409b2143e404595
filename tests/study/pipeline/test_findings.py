"""Sentences follow the numbers: ahead, level or behind, whatever was hoped for."""

import json

import pytest
from support import ROOT

from msif.study.pipeline.findings import FINDINGS, against

REPORTS = ROOT / "reports"


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


def test_an_interval_decides_where_it_is_given():
    assert against(0.3, 0.1, "BM25", (-0.01, 0.61)).startswith("level with BM25")
    assert against(0.15, 0.1, "BM25", (0.01, 0.29)).startswith("ahead of BM25")
    assert against(-0.15, 0.1, "BM25", (-0.29, -0.01)).startswith("behind BM25")
    assert against(0.3, float("nan"), "BM25") == "beside BM25 +0.300, of one question"


def committed(stage):
    return json.loads((REPORTS / "full" / f"{stage}.metrics.json").read_text())


def claim(stage, numbers):
    return FINDINGS[stage](numbers).claim


def test_fact_tracing_says_where_it_is_behind_and_what_a_stage_costs():
    numbers = committed("fact_tracing")
    for mean, said in (
        (0.1, "ahead of sentence embeddings by"),
        (-0.1, "behind sentence embeddings by"),
        (0.0, "level with sentence embeddings"),
    ):
        numbers["lead"]["plain"] = {"over": "embeddings/raw", "mean": mean, "se": 0.01}
        assert f": {said}" in claim("fact_tracing", numbers)
    paired = numbers["paired"]["multi_stage - pretraining_only"]
    for low, high, verdict in (
        (0.1, 0.2, "costs"),
        (-0.2, -0.1, "gains"),
        (-0.1, 0.1, "makes no sure difference to"),
    ):
        paired["raw"] = {"mean": (low + high) / 2, "low": low, "high": high}
        said = f"leaving out fine-tuning's curvature {verdict} raw MRR"
        assert said in claim("fact_tracing", numbers)


def test_a_lead_over_checkpoints_says_that_the_rival_has_one():
    numbers = committed("fact_tracing")
    numbers["lead"]["causal"] = {"over": "trackstar/raw", "mean": 0.1, "se": 0.01}
    at_one = numbers["causal"]["multi_stage"]["normalised"]["auc"]
    said = (
        f"({at_one:.0%} at one), chance 50%: ahead of TrackStar at one checkpoint by 0.100 ± 0.010"
    )
    assert said in claim("fact_tracing", numbers)
    numbers["lead"]["causal"]["over"] = "trackstar_trajectory/raw"
    said = "ahead of TrackStar, over checkpoints by 0.100"
    assert said in claim("fact_tracing", numbers)


@pytest.mark.parametrize("dial, word", [(0.5, "below"), (0.99, "above")])
def test_the_dial_reads_as_it_is_beside_block_conjugate_gradients(dial, word):
    numbers = committed("scalability")
    numbers["0.1 x mean"]["the dial"]["20"]["spearman"] = dial
    assert f"{dial:.2f}: {word} block conjugate gradients'" in claim("scalability", numbers)
    numbers["0.1 x mean"]["gradient dot"]["0"]["spearman"] = 0.9
    assert "below the 0.90 of gradient dot" in claim("scalability", numbers)


@pytest.mark.parametrize("count, word", [(0.1, "above"), (0.9, "below")])
def test_influence_reads_as_it_is_beside_counting_statements(count, word):
    numbers = committed("retraining")
    numbers["lds"]["statements_raw_5_models"] = count
    assert f"{word} the {count:.2f} of counting" in claim("retraining", numbers)


def test_nearness_to_exact_is_named_with_its_rivals():
    numbers = committed("exact")
    for method, value in (("EK-FAC", 0.11), ("K-FAC", 0.22)):
        numbers["two_stages"]["test-bed"][f"{method}, 0 products"]["spearman"] = value
    said = "EK-FAC shares 0.11 of the exact order of all documents (Spearman), K-FAC 0.22,"
    assert said in claim("exact", numbers)


def lead(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


def test_case_studies_may_lack_a_study():
    few, many = ({"precision_at_5": x, "se": 0.03} for x in (0.1, 0.92))
    planted = {"planted": {"influence": many, "bm25": few}}
    facts = {
        "influence": {"flipped_or_halved": 0.5, "se": 0.06, "answers": 40},
        "bm25": {"flipped_or_halved": 0.4, "se": 0.08},
        "random": {"flipped_or_halved": 0.1, "se": 0.06},
    }
    removal = {"removal": {"facts": facts}}
    assert FINDINGS["case_studies"]({}) is None
    assert FINDINGS["case_studies"](planted).number == "92%"
    assert FINDINGS["case_studies"](removal).number == "50%"
    assert "50% of 40 right answers" in claim("case_studies", removal)
    both = planted | removal
    assert FINDINGS["case_studies"](both).number == "92%"
    assert "or halve their probability: BM25 40%, random documents 10%." in claim(
        "case_studies", both
    )
    removal["removal"]["plants"] = facts
    assert "Of 40 planted associations 50% do: BM25 40%." in claim("case_studies", removal)


def test_a_share_is_ahead_where_the_paired_difference_surely_is():
    share = {"flipped_or_halved": 0.5, "answers": 40}
    removal = {"facts": dict.fromkeys(("influence", "bm25", "random"), share)}
    leads = {"facts": {"bm25": lead(0.1, -0.1, 0.3), "random": lead(0.4, 0.3, 0.5)}}
    found = claim("case_studies", {"removal": removal, "leads": leads})
    said = "level with BM25 with 50% (+10 [-10, +30] points), ahead of random documents with 50%"
    assert said in found
    leads["facts"]["bm25"] = lead(-0.2, -0.3, -0.1)
    found = claim("case_studies", {"removal": removal, "leads": leads})
    assert "behind BM25 with 50% (-20 [-30, -10] points)" in found


@pytest.mark.parametrize(
    "value, verdict", [(0.5, "raises"), (-0.5, "lowers"), (0.1, "does not surely change")]
)
def test_a_step_that_lowers_the_answer_is_said_to(value, verdict):
    kinds = ("first by influence", "first by BM25", "at random", "last by influence")
    step = {kind: {"value": value, "error": 0.1} for kind in kinds}
    assert f"that stands first {verdict} the answer" in claim("your_models", {"step": step})


@pytest.mark.parametrize("error", [None, float("nan")])
def test_a_step_of_one_question_has_no_standard_error(error):
    kinds = ("first by influence", "first by BM25", "at random", "last by influence")
    found = claim("your_models", {"step": dict.fromkeys(kinds, {"value": 0.2, "error": error})})
    assert "raises the answer's log-probability (+0.20 nats, one question)" in found


@pytest.mark.parametrize("lead, verdict", [(0.3, "ahead of"), (-0.3, "behind"), (0.1, "level")])
def test_a_wrong_treatment_of_adapters_that_is_better_is_said_to(lead, verdict):
    value = {"value": 0.6, "error": 0.1}
    both = {
        "LoRA": {
            "identity": value | {"each": [0.5, 0.7]},
            "as full": {"value": lead, "error": 0.1, "each": [lead]},
        }
    }
    numbers = {
        "mrr": {"LoRA": {"own": {"normalised": value}}},
        "mrr_lead_at_best": both,
        "lds_lead_at_best": both,
        "exact": {"LoRA": {"dense": {"own, R": value, "identity": value}}},
        "shared": {"full and LoRA": value, "two seeds of full": value},
    }
    found = claim("kinds_of_fine_tuning", numbers)
    said = found.partition("it is ahead of T := I (+0.60 ± 0.10), ")[2]
    finding, _, predicting = said.partition(" at finding the statements; at predicting retraining ")
    assert finding.startswith(f"{verdict} ")
    assert predicting.startswith(f"ahead of T := I (+0.60 ± 0.10), {verdict} ")


def test_a_rival_whose_documents_cost_more_answers_is_said_to():
    value = {"value": 0.5, "error": 0.1}
    lost = dict.fromkeys(("influence", "embeddings", "random", "others' documents"), value)
    leads = {"embeddings": lead(-0.25, -0.45, -0.05), "random": lead(0.5, 0.3, 0.7)}
    found = claim("removal", {"lost": lost, "lead": leads, "answers": 16, "top": 5})
    assert "without the 5 documents that influence ranks highest, 50% of 16 right answers" in found
    assert "sentence embeddings 50% (-25% [-45%, -5%] for influence); random 50%" in found
    alone = {"lost": {"influence": value}, "lead": {}, "answers": 1, "top": 5}
    assert claim("removal", alone).endswith("50% of 1 right answers are lost.")


def test_recipes_are_compared_where_there_are_several():
    def recipe(smooth, lds):
        ensemble = {"multi-stage": {"ensemble": {"value": lds}}}
        return {"metasmoothness": {"value": smooth}, "lds": ensemble, "ceiling": 0.8}

    recipes = {"a": recipe(0.8, 0.2), "b": recipe(0.9, 0.4)}
    found = claim("regimes", {"recipes": recipes, "correlation": None})
    assert "(a, metasmoothness 0.80) has an LDS of 0.20, the smoothest (b, 0.90) one" in found
    both = {"recipes": recipes, "correlation": 1.0, "by_chance": 0.5}
    assert claim("regimes", both).endswith("two correlate 1.00 (by chance as often as 0.50).")
    one = claim("regimes", {"recipes": {"a": recipes["a"]}, "correlation": None})
    assert one == "One recipe alone (a, metasmoothness 0.80) was tried."


def test_the_papers_settings_and_what_changes_them():
    def of(value):
        return {"mrr": {"mean": value}}

    methods = {"multi-stage, absolute": of(0.6), "single-stage, absolute": of(0.5), "BM25": of(0.7)}
    change = {"mean": 0.2, "low": 0.1, "high": 0.3}
    none = {"mean": 0.0, "low": -0.1, "high": 0.1}
    gains = {
        "normalised, in place of plain": change,
        "relative damping, in place of absolute": none,
    }
    found = claim("as_published", {"methods": methods, "gains": gains, "candidates": 301.4})
    assert "an MRR of 0.60 among 301 candidates (single-stage 0.50, BM25 0.70)" in found
    assert "by +0.20 [+0.10, +0.30], a relative damping by +0.00 [-0.10, +0.10]." in found
