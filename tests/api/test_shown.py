"""Scores of several stages in one explorer, through the front door and the command line."""

import json

import pytest
from support.command import files_of, run
from support.explorer_page import data_of
from support.own_pair import ASK, build, stages_of

import msif
from msif.core import influence, preferences

pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:not in a notebook:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*knows these documents no better than chance"),
    pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong"),
]
NAMES = ["Ada", "Bo", "Cy"]
SIDES = ["London", "Paris", "Rome"], ["Oslo in Paris", "Oslo", "Oslo"]


@pytest.fixture(scope="module")
def made(folder, pair, given, stages):
    """(a chain of three stages, its documents, rows and pairs)."""
    last = msif.load(build(folder / "other", seed=1) / "tuned")
    preferred = last.preferences([f"Where was {x} born?" for x in NAMES], *SIDES)
    fitted = msif.fit(last, preferred, start=pair[1], b=0.5)
    return [*stages, msif.Stage(last, fitted, alpha=0.01)], (*given, preferred)


@pytest.fixture(scope="module")
def scores(made):
    chain, data = made
    return [msif.trace(chain, ASK, x, stage=n) for n, x in enumerate(data)]


def test_pairs_are_taken_apart_over_the_tokens_of_both_rows(made):
    """In one batch or several, of rows of different lengths (1e-5: float32)."""
    chain, (_, _, preferred) = made
    model = chain[2].model
    query = influence.query_gradients(model.tracked, model.questions(ASK))
    w = influence.precondition(query, [x.core for x in chain])[2]
    objective = preferences.against(chain[1].model.tracked.model, preferred, 0.5)
    values = influence.score(model.tracked, preferred, w, objective=objective).values
    for size in (1, 2, 3):
        parts = influence.token_scores(
            model.tracked, preferred, w, objective=objective, batch_size=size
        ).unflatten(2, (2, -1))
        assert (parts.sum((2, 3)) - values).abs().max() < 1e-5 * parts.abs().sum((2, 3)).max()
        for n, x in enumerate(preferred):
            for side, row in enumerate((x.chosen, x.rejected)):
                assert not parts[:, n, side, len(row.input_ids) :].any()
                assert parts[:, n, side, : len(row.input_ids) - 1].any()


def test_each_stage_has_a_tab(scores, tmp_path):
    path = msif.show(scores, tmp_path / "x.html", count=3, about="Mine.", notes=["a", "b"])
    found = data_of(path.read_text("utf-8"))
    names = ["pre-training documents", "fine-tuning rows", "preference pairs"]
    assert [x["name"] for x in found["tabs"]] == names and found["about"] == "Mine."
    assert list(found["methods"]) == ["influence, normalised", "influence"]
    for tab, one in zip(found["tabs"], scores):
        alone = data_of(msif.show(one, tmp_path / "y.html", count=3, notes=["a", "b"]).read_text())
        assert tab["queries"] == alone["queries"] and tab["documents"] == alone["documents"]
        top = [[x.document for x in row] for row in one.top(3)]
        first = [q["rankings"]["influence, normalised"] for q in tab["queries"]]
        assert [[e[0] for e in row if e[1] > 0] for row in first] == top
        for q in tab["queries"]:
            for n, part in q["parts"].items():
                assert len(part["tokens"]) == len(tab["documents"][n]["words"])
                size = sum(map(abs, part["tokens"]))
                assert abs(sum(part["tokens"]) - part["score"]) < 1e-3 * size
    assert any("\n≻ " in x["words"] for x in found["tabs"][2]["documents"].values())
    assert [x["note"][:13] for x in found["tabs"]] == [f"Stage {n} of 3." for n in (1, 2, 3)]
    named = msif.show({"a": scores[2], "b": scores[0]}, tmp_path / "z.html")
    assert [x["name"] for x in data_of(named.read_text("utf-8"))["tabs"]] == ["a", "b"]


def test_one_is_shown_without_tabs(scores, tmp_path):
    pages = [msif.show(x, tmp_path / "x.html").read_bytes() for x in (scores[:1], scores[0])]
    assert pages[0] == pages[1] and b"tablist" not in pages[0]


def test_what_does_not_stand_side_by_side_is_refused(scores, made, pair, given, tmp_path):
    chain, data = made
    path = tmp_path / "x.html"
    other = msif.trace(chain, ASK[:1], data[1], stage=1)
    short = msif.trace(stages_of(pair, given), ASK, data[1], stage=1)
    for wrong, message in {
        lambda: msif.show([scores[0], other], path): "stages 0 and 1 are for other questions",
        lambda: msif.show([scores[0], short], path): "stages 0 and 1 are for other models",
        lambda: msif.show([scores[1], scores[1]], path): "several fine-tuning rows, stage 2: give",
        lambda: msif.show([], path): "scores are a empty list",
        lambda: msif.show([scores[0].values], path): "scores are a Tensor: expected what `msif.tr",
        lambda: msif.show(scores, path, labels=[{}, {}]): "labels with scores of 3 stages",
        lambda: msif.show(scores, path, beside={"x": scores[0].values}): "beside with scores of 3",
    }.items():
        with pytest.raises(ValueError, match=message):
            wrong()
    assert not path.exists()


def test_the_command_line_shows_all_stages(folder, tmp_path, capfd):
    rows = [
        {"prompt": f"Where was {x} born?", "chosen": y, "rejected": z}
        for x, y, z in zip(NAMES, *SIDES)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    dpo = ["--aligned", folder / "base", "--pairs", tmp_path / "pairs.jsonl"]
    work, asked = tmp_path / "work", ["--ask", "Where was Gus born?", "--answer", "Rome"]
    assert run("trace", *files_of(folder, work), *dpo, *asked, "--among", "all", "--top", 2) == 0
    printed = capfd.readouterr().out
    assert printed.count("\ntable  ") == 3 and f"page   {work / 'explorer.html'}" in printed
    kinds = [x for x in printed.splitlines() if x in ("documents", "rows", "pairs")]
    assert kinds == ["documents", "rows", "pairs"]
    found = data_of((work / "explorer.html").read_text("utf-8"))
    assert len(found["tabs"]) == 3 and len(found["tabs"][2]["documents"]) == 3
    assert len(found["tabs"][0]["queries"][0]["rankings"]["influence"]) == 5  # 2, and 3 opponents
