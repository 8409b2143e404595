"""The front table says what the records say, and README has it as it is made."""

import json
import math

import pytest
from support.pages import README, REPORTS

from msif.study.pipeline import front, overview

MORE = {"mrr_se": 0.1, "queries": 10}


def record(method, mrr, seed=0, condition="plain", normalised=False, **more):
    found = {"method": method, "condition": condition, "seed": seed, "normalised": normalised}
    return {**MORE, **found, "mrr": mrr, **more}


def world(seed=0, single=0.5, multi=0.6):
    """Records of one seed, with every column."""
    return [
        record("single_stage_finetuned", single, seed, normalised=True),
        record("multi_stage", multi, seed, normalised=True),
        record("multi_stage", 0.99, seed),
        record("multi_stage_trajectory", 0.7, seed, normalised=True),
        record("trackstar", 0.5, seed),
        record("trackstar_trajectory", 0.65, seed),
        record("hidden_mean", 0.6, seed),
        record("bm25", 0.8, seed),
        record("tfidf", 0.9, seed),
    ]


def reports(folder, records, profile="full", low=-0.1, **metrics):
    gain = {"normalised": {"mean": 0.05, "low": low, "high": 0.2}}
    paired = {"multi_stage_trajectory - pretraining_only_trajectory": gain}
    (folder / profile).mkdir(parents=True, exist_ok=True)
    (folder / profile / "fact_tracing.json").write_text(json.dumps(records))
    (folder / profile / "fact_tracing.metrics.json").write_text(json.dumps({"paired": paired}))
    for name, numbers in metrics.items():
        (folder / profile / f"{name}.metrics.json").write_text(json.dumps(numbers))
    return folder


def test_a_line_has_each_method_at_one_checkpoint_and_over_several(tmp_path):
    (row,) = front.rows(reports(tmp_path, world()))
    said = [row.said(column) for column in front.COLUMNS]
    assert [name for name, _, _ in said] == ["", "", "TrackStar", "TF-IDF"]
    assert [one.split()[0] for _, one, _ in said] == ["0.50", "0.60", "0.50", "0.90"]
    assert [over.split(" ")[0] for _, _, over in said] == ["", "0.70", "0.65", ""]


def test_the_best_rival_is_the_best_in_either_of_its_forms(tmp_path):
    better = [*world(), record("hidden_input", 0.66)]
    (row,) = front.rows(reports(tmp_path, better))
    assert row.said("best rival")[0] == "input embeddings, mean"
    published = [*world(), record("tracincp", 0.9, normalised=True)]
    (row,) = front.rows(reports(tmp_path, published))
    assert row.said("best rival")[:2] == ("TracInCP", "–")


def test_an_interval_of_one_world_is_over_questions_and_of_several_over_worlds():
    assert front.interval([0.5], [0.1]) == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    low, high = front.interval([0.4, 0.5, 0.6], [0.0] * 3)
    assert (low, high) == pytest.approx((0.5 - 4.303 * 0.1 / math.sqrt(3), 0.5 + 0.24843), abs=1e-3)
    assert front.interval([0.99], [0.1])[1] == 1 and front.interval([0.01], [0.1])[0] == 0
    assert front.interval([1.0, 1.0], [0.0, 0.0]) == (1.0, 1.0)


def test_worlds_and_questions_are_those_of_the_records(tmp_path):
    (row,) = front.rows(reports(tmp_path, world(1) + world(2)))
    assert row.size == "2 (20)"


def test_of_one_question_no_interval_is_known(tmp_path):
    alone = [x | {"mrr_se": math.nan} for x in world()]
    (row,) = front.rows(reports(tmp_path, alone))
    assert row.said("text search") == ("TF-IDF", "0.90", "")


def test_a_profile_comes_in_when_its_record_does_and_tiny_stands_in_for_none(tmp_path):
    def shown():
        return [(row.profile, row.condition) for row in front.rows(tmp_path)]

    assert shown() == [] and front.answers(tmp_path, []) == []
    reports(tmp_path, world(), "tiny")
    assert shown() == [("tiny", "plain")]
    named = [{**x, "condition": "named", "auc": x["mrr"], "auc_se": x["mrr_se"]} for x in world()]
    reports(tmp_path, [*named, *world()], "smollm")
    assert shown() == [("smollm", "plain"), ("smollm", "named")]
    reports(tmp_path, world())
    assert shown()[0] == ("full", "plain") and len(shown()) == 3
    assert "| `smollm`, same names |" in front.markdown(tmp_path)


@pytest.mark.parametrize(
    "low, single, said",
    [
        (0.01, 0.5, "nowhere in this table."),
        (-0.01, 0.5, "plain MRR on full (+0.050 [−0.010, +0.200])."),
        (0.01, 0.7, "multi-stage is not above single-stage on full, plain (0.70 and 0.60)."),
    ],
)
def test_where_the_second_stage_does_not_help_is_what_the_records_say(tmp_path, low, single, said):
    folder = reports(tmp_path, world(single=single), low=low)
    assert front.second_stage(folder).endswith(said)


def test_one_stage_over_checkpoints_of_pre_training_is_a_rival_too(tmp_path):
    alone = record("single_stage_pretrained_trajectory", 0.8, normalised=True)
    folder = reports(tmp_path, [*world(), alone], low=0.01)
    said = front.second_stage(folder)
    assert said.endswith(
        "help: over checkpoints multi-stage is not above single-stage on full, plain (0.80 and "
        "0.70)."
    )
    assert " (0.80 " in front.markdown(folder)


def test_whether_to_trust_it_is_said_where_there_are_records_of_it(tmp_path):
    assert len(front.answers(tmp_path, front.rows(reports(tmp_path, world())))) == 1
    bed = {
        "EK-FAC, 0 products": {"spearman": 0.12, "pearson": 0.34},
        "gradient dot, 0 products": {"spearman": 0.56, "pearson": 0.78},
    }
    lds = {"multi_stage_normalised_1_models": 0.21, "bm25_raw_1_models": 0.11}
    lds = {"lds": lds, "ceiling": 0.43}
    folder = reports(tmp_path, world(), exact={"two_stages": {"test-bed": bed}}, retraining=lds)
    _, (about, rest) = front.answers(folder, front.rows(folder))
    assert about == "Should I trust it on my model?"
    for number in (
        "MRR of 0.60",
        "Spearman of 0.12",
        "gradients 0.56)",
        "is 0.34 (dot product 0.78)",
    ):
        assert number in rest
    assert "correlation of 0.21, BM25 0.11; noise allows 0.43" in rest
    assert "Both are so, as Spearman counts every pair" in rest
    bed["EK-FAC, 0 products"]["pearson"] = 0.12
    folder = reports(tmp_path, world(), exact={"two_stages": {"test-bed": bed}}, retraining=lds)
    _, (_, rest) = front.answers(folder, front.rows(folder))
    assert "Of the few large scores that is no better" in rest and "Both are so" not in rest


def test_the_readme_has_the_table_as_it_is_made_from_the_reports():
    start, end = front.MARKS
    kept = README.split(f"{start}\n")[1].split(f"\n{end}")[0]
    assert kept == front.markdown(REPORTS), "python -m msif.study.pipeline.front --write"


def test_the_index_has_what_the_table_says():
    page, found = overview.page(REPORTS), front.rows(REPORTS)
    for row in found:
        for part in (part for column in front.COLUMNS for part in row.said(column)):
            assert part in page
    for about, rest in front.answers(REPORTS, found):
        assert about in page and rest.replace("'", "&#39;") in page


def test_the_command_prints_it_and_writes_it_where_the_marks_are(tmp_path, monkeypatch, capsys):
    reports(tmp_path / "reports", world())
    (tmp_path / "dvc.yaml").touch()
    start, end = front.MARKS
    (tmp_path / "README.md").write_text(f"before\n{start}\nold\n{end}\nafter\n")
    monkeypatch.chdir(tmp_path)
    made = front.markdown(tmp_path / "reports")
    monkeypatch.setattr("sys.argv", ["front"])
    front.main()
    assert capsys.readouterr().out == f"{made}\n"
    monkeypatch.setattr("sys.argv", ["front", "--write"])
    front.main()
    assert (tmp_path / "README.md").read_text() == f"before\n{start}\n{made}\n{end}\nafter\n"
