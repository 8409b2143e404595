"""What is said below the front table: where two stages do not help, whether to trust it."""

import json

from support.traced_records import record, reports, world

from msif.study.pipeline import front, traced

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
