"""Scores of several stages in one explorer, through the front door and the command line."""

import json
from dataclasses import replace

import pytest
from support.command import files_of, run
from support.explorer_page import data_of
from support.own_pair import ASK, build, stages_of
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import msif
from msif.core import influence, preferences

pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:not in a notebook:UserWarning"),
    pytest.mark.filterwarnings("ignore:tracked. 60 % of:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*knows these documents no better than chance"),
    pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong"),
    pytest.mark.filterwarnings("ignore:.*does not prefer what its pairs chose"),
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


def test_the_answer_is_in_words_of_the_tokenizer_that_was_asked(pair, given, stages, tmp_path):
    """Fine-tuning may change a vocabulary: its "Zurich" has the number of the base's "Rome"."""
    renamed = pair[1].tokenizer.backend_tokenizer.to_str().replace('"Rome"', '"Zurich"')
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(renamed))
    asked = replace(pair[1], tokenizer=tokenizer)
    chain = [stages[0], replace(stages[1], model=asked)]
    found = msif.trace(chain, [("Where was Gus born?", "Zurich")], given[0])
    path = msif.show(found, tmp_path / "x.html")
    [query] = data_of(path.read_text("utf-8"))["queries"]
    assert "".join(query["answer"]).strip() == "Zurich"


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


def test_other_settings_of_the_same_models_are_told_in_their_tabs(pair, given, tmp_path):
    """Damping, α and what the factors were fitted on: to compare them is what tabs may be for."""
    two = stages_of(pair, given)
    firm = msif.Stage(two[0].model, two[0].factors, damping=10.0)
    absolute = msif.Damping(0.1, relative=False)
    loose = msif.Stage(pair[1], msif.fit(pair[1], given[1], seed=7), alpha=absolute)
    chains = {"a": two, "b": [firm, two[1]], "c": [two[0], loose]}
    found = {name: msif.trace(chain, ASK, given[0]) for name, chain in chains.items()}
    page = data_of(msif.show(found, tmp_path / "x.html").read_text("utf-8"))
    told = [
        f"Stage 1 of 2. Not as in all tabs: damping of stage 1 = {d}, α of stage 2 = {a}, seed of "
        f"the factors of stage 2 = {s}."
        for d, a, s in ((0.1, 0.1, 0), (10.0, 0.1, 0), (0.1, "0.1 (absolute)", 7))
    ]
    assert [x["note"] for x in page["tabs"]] == told
    page = data_of(msif.show({"a": found["a"], "d": found["a"]}, tmp_path / "x.html").read_text())
    assert [x["note"] for x in page["tabs"]] == ["Stage 1 of 2."] * 2


def test_texts_are_withheld_of_one_stage_or_of_tabs(scores, tmp_path):
    def words(what, withheld):
        """[{number: is its text there}], a tab each."""
        page = msif.show(what, tmp_path / "x.html", count=3, withhold_texts=withheld)
        found = data_of(page.read_text("utf-8"))
        whole = msif.show(what, tmp_path / "y.html", count=3)
        whole = data_of(whole.read_text("utf-8"))
        pages = [x.get("tabs", [x]) for x in (found, whole)]
        return [
            {int(n): d["words"] == y["documents"][n]["words"] for n, d in x["documents"].items()}
            for x, y in zip(*pages)
        ]

    names = ["pre-training documents", "fine-tuning rows", "preference pairs"]
    [all_of] = words(scores[0], False)
    assert all(all_of.values())
    assert (
        words(scores[0], True)
        == words(scores[0], {names[0]: True})
        == [dict.fromkeys(all_of, False)]
    )
    first = min(all_of)
    numbers = set(scores[0].index.tolist()) - {first}  # others than are shown, too
    assert len(numbers) >= len(all_of)
    assert words(scores[0], numbers) == [{n: n == first for n in all_of}]
    three = words(scores, {names[0]: [first], names[2]: True})
    assert three[0] == {n: n != first for n in all_of}
    assert all(three[1].values()) and not any(three[2].values())
    assert not any(any(x.values()) for x in words(scores, True))


def test_effects_are_shown_where_n_is_given(scores, tmp_path):
    """Of one stage by a number, of tabs by name; of fewer documents than N, or of none."""

    def given(what, n):
        found = data_of(msif.show(what, tmp_path / "x.html", count=3, trained_on=n).read_text())
        return [x["trained_on"] for x in found.get("tabs", [found])]

    name = "fine-tuning rows"
    assert given(scores[0], None) == [None] and given(scores, None) == [None] * 3
    assert given(scores[0], 10**6) == given(scores[0], {"pre-training documents": 10**6}) == [10**6]
    assert given(scores, {name: 9}) == [None, 9, None]
    for what, wrong, message in (
        (scores, 9, "trained_on is 9, and there are 3 tabs; expected .name: number., of 'pre-tra"),
        (scores, {"rows": 9}, "trained_on has 'rows', which is no tab; expected 'pre-training"),
        (scores, {name: 0}, "trained_on of fine-tuning rows is 0; expected a whole number, at l"),
        (scores[0], 2.5, "trained_on of pre-training documents is 2.5; expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            msif.show(what, tmp_path / "y.html", trained_on=wrong)
    assert not (tmp_path / "y.html").exists()


@pytest.mark.parametrize(
    "several, wrong, message",
    [
        (
            True,
            {0},
            "withhold_texts is .0., and there are 3 tabs; expected True, False, or .name: ",
        ),
        (
            True,
            {"rows": True},
            "withhold_texts has 'rows', which is no tab; expected 'pre-training",
        ),
        (True, {"fine-tuning rows": "all"}, "of fine-tuning rows is 'all'; expected True, False,"),
        (False, [999], "of pre-training documents has 999, which is the number of no document; e"),
        (False, {True}, "has True, which is the number of no document"),
        (False, 1, "withhold_texts of pre-training documents is 1; expected True, False, or a set"),
    ],
)
def test_what_is_withheld_of_nothing_is_refused(scores, several, wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        msif.show(scores if several else scores[0], tmp_path / "x.html", withhold_texts=wrong)
    assert not (tmp_path / "x.html").exists()


def test_one_is_shown_without_tabs(scores, tmp_path):
    pages = [msif.show(x, tmp_path / "x.html").read_bytes() for x in (scores[:1], scores[0])]
    assert pages[0] == pages[1] and b"tablist" not in pages[0]


def test_what_does_not_stand_side_by_side_is_refused(scores, made, pair, given, tmp_path):
    chain, data = made
    path = tmp_path / "x.html"
    other = msif.trace(chain, ASK[:1], data[1], stage=1)
    two = stages_of(pair, given)
    short = msif.trace(two, ASK, data[1], stage=1)
    mlp = [msif.load(x.source, pattern=r"mlp\.") for x in pair]
    few = msif.trace(stages_of(mlp, given), ASK, data[1], stage=1)
    with pytest.warns(UserWarning, match="nothing was fine-tuned"):
        on_itself = [msif.Stage(pair[1], two[1].factors, damping=0.1), two[1]]
        based = msif.trace(on_itself, ASK, data[1], stage=1)
    for wrong, message in {
        lambda: msif.show([scores[0], other], path): "stages 0 and 1 are for other questions",
        lambda: msif.show(
            [scores[0], short], path
        ): "stages 0 and 1 are for other models .of 3 and",
        lambda: msif.show([short, few], path): "other layers .of stage 1, 14 and 6 are tra",
        lambda: msif.show([short, based], path): "other models .in stage 1 .*base and .*tuned.",
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
