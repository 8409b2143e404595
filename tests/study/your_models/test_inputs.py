"""A pair of one's own is looked at before any work: what is wrong is named, with what to write."""

import json

import pytest

from msif.study.your_models.inputs import Pair, given

ASKED = [{"prompt": "Where was Ada born?"}, {"prompt": "And Bo?", "answer": "Paris"}]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a pair in its folder mine/; the working directory is notebooks/."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    for name in ("base", "tuned"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "config.json").touch()
    for name in ("documents", "rows"):
        (tmp_path / "mine" / f"{name}.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def sources(**changed):
    mine = {"base": "mine/base", "tuned": "mine/tuned"}
    mine |= {"documents": "mine/documents.jsonl", "rows": "mine/rows.jsonl", "questions": ASKED}
    return mine | changed


def test_paths_count_from_the_root_and_an_answer_may_be_left_out(study):
    found = given(**sources())
    assert found == Pair(
        *(str(study / "mine" / x) for x in ("base", "tuned", "documents.jsonl", "rows.jsonl")),
        [{"prompt": "Where was Ada born?", "answer": None}, ASKED[1]],
    )


def test_absolute_paths_and_hub_ids_stay_as_they_are(study):
    path = str(study / "mine" / "base")
    found = given(**sources(base=path, tuned="someone/model", documents="texts"))
    assert (found.base, found.tuned, found.documents) == (path, "someone/model", "texts")


def test_questions_may_be_a_file(study):
    (study / "q.jsonl").write_text("".join(json.dumps(x) + "\n" for x in ASKED))
    (study / "q.txt").write_text("Where was Ada born?\nAnd Bo?\n")
    assert given(**sources(questions="q.jsonl")).questions == [
        ASKED[0] | {"answer": None},
        ASKED[1],
    ]
    assert given(**sources(questions="q.txt")).questions == [
        {"prompt": x["prompt"], "answer": None} for x in ASKED
    ]


def test_without_a_pair_the_small_one_is_asked_so_many_questions(study):
    assert given(None, None, None, None, 8) is None
    for questions in (0, True, None, ASKED):
        with pytest.raises(ValueError, match="expected how many of the small pair's questions"):
            given(None, None, None, None, questions)


@pytest.mark.parametrize(
    "changed, says",
    [
        (
            {"documents": None},
            "base, tuned, rows are given, documents not. .* expected documents: pre-training texts",
        ),
        (
            {"base": None, "documents": None, "rows": None},
            "tuned is given, base, documents, rows not. .*; rows: fine-tuning rows",
        ),
        ({"questions": 8}, 'questions is 8: with a pair of your own, expected a list of {"prompt"'),
        ({"questions": []}, "questions is .*expected a list"),
        ({"questions": None}, "questions is None.*expected a list"),
        ({"questions": [ASKED[1], {"answer": "x"}]}, 'question 2 has no "prompt", it is {.*answer'),
        ({"questions": ["Where?"]}, 'question 1 has no "prompt", it is .Where'),
        ({"questions": [{"prompt": "x", "anwser": "y"}]}, "question 1 has an unknown 'anwser'"),
        ({"questions": [{"prompt": " "}]}, "question 1 has the prompt ' '; expected text"),
        ({"questions": [{"prompt": "x", "answer": 3}]}, "question 1 has the answer 3; expected"),
        ({"questions": "someone/questions"}, "'someone/questions', which is no file: expected"),
        ({"base": 3}, "base is 3; expected the pre-trained model, a folder or a hub id"),
        ({"base": "mine"}, "base is .*mine, where no config.json is; expected a model's folder"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_what_is_expected(study, changed, says):
    with pytest.raises(ValueError, match=says):
        given(**sources(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"base": "mine/bse"},  # a folder of the study: no hub id
        {"documents": "elsewhere.jsonl"},
        {"rows": "../rows"},
        {"tuned": "/nowhere/tuned"},
        {"documents": "some/more/texts"},
        {"questions": "questions.jsonl"},
    ],
)
def test_a_path_that_is_not_there_is_named_with_the_folder_that_it_counts_from(study, changed):
    says = f"{next(iter(changed))} is .*, and there is no .*: paths count from .*{study}"
    with pytest.raises(FileNotFoundError, match=says):
        given(**sources(**changed))
