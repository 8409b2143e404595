"""The front table says what the records say, and README has it as it is made."""

import json
import math
import re

import pytest
from scipy import stats
from support.pages import README, REPORTS, TEXT

from msif.study.pipeline import front, overview, traced

MORE = {"mrr_se": 0.1, "queries": 10}


def record(method, mrr, seed=0, condition="plain", normalised=False, **more):
    found = {"method": method, "condition": condition, "seed": seed, "normalised": normalised}
    return {**MORE, **found, "mrr": mrr, **more}


def world(seed=0, single=0.5, multi=0.6, alone=0.55):
    """Records of one seed, with every column."""
    return [
        record("single_stage_finetuned", single, seed, normalised=True),
        record("multi_stage", multi, seed, normalised=True),
        record("multi_stage", 0.99, seed),
        record("pretraining_only", alone, seed, normalised=True),
        record("pretraining_only_trajectory", 0.65, seed, normalised=True),
        record("multi_stage_trajectory", 0.7, seed, normalised=True),
        record("trackstar", 0.5, seed),
        record("trackstar_trajectory", 0.65, seed),
        record("hidden_mean", 0.6, seed),
        record("bm25", 0.8, seed),
        record("tfidf", 0.9, seed),
    ]


def reports(folder, records, profile="full", low=-0.1, **metrics):
    gain = {"normalised": {"mean": 0.05, "low": low, "high": 0.2}}
    pairs = ("{} - pretraining_only{}", "_trajectory"), ("{} - pretraining_only{}", "")
    paired = {name.format(f"multi_stage{end}", end): gain for name, end in pairs}
    (folder / profile).mkdir(parents=True, exist_ok=True)
    (folder / profile / "fact_tracing.json").write_text(json.dumps(records))
    (folder / profile / "fact_tracing.metrics.json").write_text(json.dumps({"paired": paired}))
    for name, numbers in metrics.items():
        (folder / profile / f"{name}.metrics.json").write_text(json.dumps(numbers))
    return folder


def test_a_line_has_each_method_at_one_checkpoint_and_another_over_several(tmp_path):
    one, over = traced.rows(reports(tmp_path, world()))
    assert (one.question, over.question) == ("plain", "plain, over checkpoints")

    def said(row):
        found = [row.said(column) for column in traced.COLUMNS]
        return [(name, number.split(" ")[0]) for name, number in found]

    assert said(one) == [
        ("", "0.50"),
        ("", "0.55"),
        ("", "0.60"),
        ("hidden states, mean", "0.60"),
        ("TF-IDF", "0.90"),
    ]
    assert said(over) == [
        ("", "–"),
        ("", "0.65"),
        ("", "0.70"),
        ("TrackStar, over checkpoints", "0.65"),
        ("", "–"),
    ]


def test_the_best_rival_is_the_best_of_its_line_whatever_its_kin_have_on_the_other(tmp_path):
    """A method that is best over checkpoints does not stand for the best at one."""
    better = [*world(), record("hidden_input", 0.66), record("trackstar_trajectory", 0.99)]
    one, over = traced.rows(reports(tmp_path, better))
    assert one.said("best rival")[0] == "input embeddings, mean"
    assert over.said("best rival")[0] == "TrackStar, over checkpoints"
    published = [*world(), record("tracincp", 0.9, normalised=True)]
    one, over = traced.rows(reports(tmp_path, published))
    assert over.said("best rival")[0] == "TracInCP"
    assert one.said("best rival")[0] == "hidden states, mean"


def test_an_interval_of_one_world_is_over_questions_and_of_several_over_worlds():
    assert traced.interval([0.5], [0.1]) == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    low, high = traced.interval([0.4, 0.5, 0.6], [0.0] * 3)
    assert (low, high) == pytest.approx((0.5 - 4.303 * 0.1 / math.sqrt(3), 0.5 + 0.24843), abs=1e-3)
    assert traced.interval([0.99], [0.1])[1] == 1 and traced.interval([0.01], [0.1])[0] == 0
    assert traced.interval([1.0, 1.0], [0.0, 0.0]) == (1.0, 1.0)


def test_worlds_and_questions_are_those_of_the_records(tmp_path):
    assert [x.size for x in traced.rows(reports(tmp_path, world(1) + world(2)))] == ["2 (20)"] * 2


def test_of_one_question_no_interval_is_known(tmp_path):
    alone = [x | {"mrr_se": math.nan} for x in world()]
    one, _ = traced.rows(reports(tmp_path, alone))
    assert one.said("text search") == ("TF-IDF", "0.90")


def test_a_profile_comes_in_when_its_record_does_and_tiny_stands_in_for_none(tmp_path):
    def shown():
        return [(row.profile, row.condition) for row in traced.rows(tmp_path) if not row.over]

    assert shown() == [] and front.answers(tmp_path, []) == []
    reports(tmp_path, world(), "tiny")
    assert shown() == [("tiny", "plain")]
    named = [{**x, "condition": "named", "auc": x["mrr"], "auc_se": x["mrr_se"]} for x in world()]
    reports(tmp_path, [*named, *world()], "smollm")
    assert shown() == [("smollm", "plain"), ("smollm", "named")]
    reports(tmp_path, world())
    assert shown()[0] == ("full", "plain") and len(shown()) == 3
    assert "| `smollm`, same names |" in front.markdown(tmp_path)


ONE = [0.1, 0.2, 0.3]
SURE = " Sure: by the 95 % interval of the paired difference."
NOWHERE = "multi-stage is surely above both wherever that is recorded."


def test_where_the_second_stage_helps_everywhere_nothing_is_named(tmp_path):
    records = [
        x | {"mrr_se": 0.001} for seed, d in enumerate(ONE) for x in world(seed, d, 0.9 + d / 9, d)
    ]
    for x in records:
        if x["method"].endswith("_trajectory"):
            x["mrr"] = ONE[x["seed"]] + 0.5 * x["method"].startswith("multi")
    said = front.second_stage(reports(tmp_path, records))
    assert said == f"Where two stages do not help: {NOWHERE}{SURE}"


def test_a_difference_over_worlds_is_paired_by_world(tmp_path):
    """The worlds differ by much, each method's gain on them by little: sure, though the two means'
    own intervals overlap."""
    records = [x for seed, d in enumerate(ONE) for x in world(seed, d, d + 0.05 + d / 100, d - 0.1)]
    folder = reports(tmp_path, records)
    ((row, x),) = traced.differences(folder, traced.rows(folder), "single-stage")
    gains = [0.05 + d / 100 for d in ONE]
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (x.mean, x.low, x.high) == pytest.approx((0.052, *expected))
    assert x.low > 0 and not row.over


def test_what_is_surely_below_is_not_called_unsure(tmp_path):
    records = [x for seed, d in enumerate(ONE) for x in world(seed, d + 0.3 + d / 100, d, d - 0.1)]
    said = front.second_stage(reports(tmp_path, records))
    assert (
        "surely below single-stage at one checkpoint on full (plain −0.302 [−0.304, −0.300])"
        in said
    )
    assert "not surely above" not in said


def test_of_one_world_it_is_paired_by_question_where_that_is_recorded(tmp_path):
    folder = reports(tmp_path, world(), low=-0.01)
    found = traced.rows(folder)
    for _, x in traced.differences(folder, found, traced.ALONE):
        assert (x.mean, x.low, x.high) == (0.05, -0.01, 0.2)
    assert traced.differences(folder, found, "single-stage") == [(found[0], None)]
    assert front.second_stage(folder, found) == (
        "Where two stages do not help: multi-stage is not surely above pre-training alone "
        "over checkpoints on full (plain); not surely above pre-training alone at one checkpoint "
        f"on full (plain).{SURE} Not recorded: against single-stage on full (plain)."
    )
    sure = front.second_stage(reports(tmp_path, world(), low=0.01))
    assert sure.startswith(f"Where two stages do not help: {NOWHERE}{SURE}")


def test_a_record_of_every_condition_is_read_before_the_older_one_of_plain(tmp_path):
    named = [{**x, "condition": "named", "auc": x["mrr"], "auc_se": x["mrr_se"]} for x in world()]
    folder = reports(tmp_path, [*world(), *named], low=0.01)
    found = traced.rows(folder)
    assert front.second_stage(folder, found).endswith(
        f"{SURE} Not recorded: against pre-training alone on full (same names); against "
        "single-stage on full (plain, same names)."
    )
    path = folder / "full" / "fact_tracing.metrics.json"
    gain = {"normalised": {"mean": 0.02, "low": -0.02, "high": 0.06}}
    names = ("multi_stage - pretraining_only", "multi_stage - single_stage_finetuned")
    kept = json.loads(path.read_text()) | {"differences": {"named": dict.fromkeys(names, gain)}}
    path.write_text(json.dumps(kept))
    assert [
        (row.condition, x.mean) for row, x in traced.differences(folder, found, "single-stage") if x
    ] == [("named", 0.02)]
    said = front.second_stage(folder, found)
    assert "not surely above pre-training alone at one checkpoint on full (same names);" in said
    assert "not surely above single-stage at one checkpoint on full (same names)." in said


@pytest.mark.parametrize(
    "without",
    [("pretraining_only",), ("single_stage",), ("multi_stage",), ("bm25", "tfidf")],
    ids=lambda x: x[0],
)
def test_a_report_without_some_methods_has_a_dash_there(tmp_path, without):
    kept = [x for x in world() if not x["method"].startswith(without)]
    folder = reports(tmp_path, kept)
    assert "–" in front.markdown(folder) and front.added(folder)
    assert front.second_stage(folder)


def test_one_stage_over_checkpoints_of_pre_training_is_a_rival_too(tmp_path):
    alone = record("single_stage_pretrained_trajectory", 0.8, normalised=True)
    _, over = traced.rows(reports(tmp_path, [*world(), alone]))
    name, number = over.said("best rival")
    assert name == "single-stage at the pre-trained model, over checkpoints"
    assert number.startswith("0.80 ")


def test_whether_to_trust_it_is_said_where_there_are_records_of_it(tmp_path):
    assert len(front.answers(tmp_path, traced.rows(reports(tmp_path, world())))) == 1

    def problem(ekfac, dot):
        return {
            "EK-FAC, 0 products": {"spearman": ekfac, "pearson": ekfac + 0.1},
            "gradient dot, 0 products": {"spearman": dot, "pearson": dot + 0.1},
        }

    two = {"damping": 0.1, "two_stages": {"a": problem(0.12, 0.05), "b": problem(0.3, -0.001)}}
    lds = {
        "multi_stage_normalised_1_models": 0.21,
        "bm25_raw_1_models": 0.11,
        "statements_raw_5_models": 0.36,
    }
    same = [record("multi_stage", 0, condition="matched", auc=0.7, auc_se=0.1)]
    same += [record("word_order", 0, condition="matched", auc=0.9, auc_se=0.1)]
    numbers = {"exact": two, "retraining": {"lds": lds, "ceiling": 0.43}}
    folder = reports(tmp_path, [*world(), *same], **numbers)
    _, (about, rest) = front.answers(folder, traced.rows(folder))
    assert about == "Should I trust it on my model?"
    for said in (
        "ahead in 0.70 of the pairs (a rule of word order alone: 0.90). Not for",
        "on the 2 problems of notebook 04, at damping 0.1, the order has a Spearman of 0.12 to "
        "0.30 with that of exact influence (dot product of gradients 0.00 to 0.05), the sizes a "
        "Pearson of 0.22 to 0.40 (0.10 to 0.15)",
        "correlation of 0.21, BM25 0.11, counting the sentences that state the fact 0.36; noise "
        "allows at most 0.43",
    ):
        assert said in rest


def test_the_order_at_the_least_damping_is_said_where_it_was_tried(tmp_path):
    def tried(problem, damping, spearman, method="EK-FAC"):
        at = {"problem": problem, "method": method, "stages": 2, "products": 0}
        return at | {"damping": damping, "spearman": spearman}

    of = ("a", 0.1, 0.3), ("a", 0.001, 0.04), ("a", 0.001, 0.08), ("b", 0.001, 0.11), ("b", 10, 1.0)
    kept = [*(tried(*x) for x in of), tried("a", 0.001, 0.9, "K-FAC")]
    (tmp_path / "exact.json").write_text(json.dumps(kept))
    assert front.at_less_damping(tmp_path, 0.1) == " (at 0.001 less: 0.06 to 0.11)"
    assert front.at_less_damping(tmp_path, 0.001) == ""


def test_where_no_line_is_sure_the_lines_are_not_listed(tmp_path):
    named = [{**x, "condition": "named", "auc": x["mrr"], "auc_se": x["mrr_se"]} for x in world()]
    folder = reports(tmp_path, [*world(), *named])
    path = folder / "full" / "fact_tracing.metrics.json"
    gain = {"normalised": {"mean": 0.02, "low": -0.02, "high": 0.06}}
    pairs = {"multi_stage_trajectory - pretraining_only_trajectory": gain}
    of = {"named": pairs, "plain": pairs}
    path.write_text(json.dumps({"differences": of}))
    said = front.second_stage(folder)
    assert "not surely above pre-training alone over checkpoints on any line recorded" in said


def test_the_readme_has_the_table_as_it_is_made_from_the_reports():
    start, end = front.MARKS
    kept = README.split(f"{start}\n")[1].split(f"\n{end}")[0]
    assert kept == front.markdown(REPORTS), "python -m msif.study.pipeline.front --write"


def test_the_index_has_the_table_line_by_line():
    page, found = overview.page(REPORTS), traced.rows(REPORTS)
    table = re.search(r'<table class="front".*?</table>', page, re.S)[0]
    lines = re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    shown = [
        [
            " ".join(re.sub(r"<.*?>", " ", cell).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", x, re.S)
        ]
        for x in lines
    ]
    expected = [
        [f"{row.profile}, {row.question}", row.size]
        + [" ".join(filter(None, row.said(column))) for column in traced.COLUMNS]
        for row in found
    ]
    assert shown == expected
    for about, rest in front.answers(REPORTS, found):
        assert about in page and rest.replace("'", "&#39;") in page


def test_the_command_prints_it_and_writes_it_where_the_marks_are(tmp_path, monkeypatch, capsys):
    reports(tmp_path / "reports", world())
    (tmp_path / "dvc.yaml").touch()
    start, end = front.MARKS
    (tmp_path / "README.md").write_text(f"before\n{start}\nold\n{end}\nafter\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/findings.md").write_text("\n".join(["a", *front.ADDED, "b"]))
    monkeypatch.chdir(tmp_path)
    made = front.markdown(tmp_path / "reports")
    monkeypatch.setattr("sys.argv", ["front"])
    front.main()
    assert capsys.readouterr().out == f"{made}\n"
    monkeypatch.setattr("sys.argv", ["front", "--write"])
    front.main()
    assert (tmp_path / "README.md").read_text() == f"before\n{start}\n{made}\n{end}\nafter\n"
    added, (start, end) = front.added(tmp_path / "reports"), front.ADDED
    assert (tmp_path / "docs/findings.md").read_text() == f"a\n{start}\n{added}\n{end}\nb"


def test_what_the_second_stage_adds_is_by_form_and_the_findings_have_it(tmp_path):
    records = [*world(), record("pretraining_only", 0.9)]
    table = front.added(reports(tmp_path, records, low=0.01)).splitlines()
    assert table[2] == (
        "| full, plain | – | +0.050 [+0.010, +0.200] | – | +0.050 [+0.010, +0.200] |"
    )
    start, end = front.ADDED
    kept = TEXT["findings.md"].split(f"{start}\n")[1].split(f"\n{end}")[0]
    assert kept == front.added(REPORTS), "python -m msif.study.pipeline.front --write"
