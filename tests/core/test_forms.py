"""Forms of rows: however they arrive they are the same rows; what could be read in two ways is
refused."""

import json

import pytest
from support.tokenizers_of_kinds import CHAT, byte_level

from msif.core import forms, messages
from msif.core.conversations import encode

COLUMNS = ("prompt", "answer")


def user(text):
    return {"role": "user", "content": text}


def told(text):
    return {"role": "assistant", "content": text}


TWO = [user("Where was Ada born ?"), told("London"), user("Where ?"), told("Paris .")]
TEXT = {"prompt": "Where?", "answer": "Paris"}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    return path


def test_it_does_not_matter_how_conversations_arrive(tmp_path):
    """As lists, as rows, from .jsonl, .json and .parquet, whose tables fill in what is missing."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    tokenizer = byte_level(["Where was Ada born ? Paris London"], CHAT)
    chats = [TWO, [{**user("Where ?"), "name": "Bo"}, told("Paris")]]
    rows = [{"messages": x, "source": n} for n, x in enumerate(chats)]
    jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    given = [
        chats,
        rows,
        tuple(chats),
        *(tmp_path / f"rows.{x}" for x in ("jsonl", "json", "parquet")),
    ]
    for one in given:
        found = forms.read(one, COLUMNS)
        assert found.loss == "turns"
        assert encode(found.conversations, tokenizer, 999) == encode(chats, tokenizer, 999)
        assert len(forms.read(one, COLUMNS, limit=1).conversations) == 1


def test_a_completion_is_an_answer(tmp_path):
    """Row by row, where the column is not named otherwise; null is none."""
    renamed = {"prompt": "Where?", "completion": "Paris"}
    rows = [TEXT, renamed, renamed | {"answer": None}, {**TEXT, "completion": None}]
    for given in (rows, jsonl(tmp_path / "rows.jsonl", rows)):
        assert forms.read(given, COLUMNS) == [("Where?", "Paris")] * 4
    with pytest.raises(ValueError, match="row 0 has no column 'said'; its columns are completion"):
        forms.read([renamed], ("prompt", "said"))
    assert forms.read([{**renamed, "said": "Rome"}], ("prompt", "said")) == [("Where?", "Rome")]
    assert forms.read([renamed], ("prompt", "completion")) == [("Where?", "Paris")]
    assert forms.read([{"prompt": "Where?"}], COLUMNS, due=False) == [("Where?", None)]


def test_prompt_and_answer_may_be_messages(tmp_path):
    """As trl has them: what follows the prompt is one answer."""
    rows = [{"prompt": TWO[:3], "completion": TWO[3:]}, {"prompt": TWO[:1], "answer": [told("x")]}]
    expected = forms.Chats([TWO, [TWO[0], told("x")]], "rest")
    assert forms.read(rows, COLUMNS) == expected
    assert forms.read(jsonl(tmp_path / "rows.jsonl", rows), COLUMNS) == expected
    asked = [*rows, {"prompt": TWO[:1]}]
    assert forms.read(asked, COLUMNS, due=False).conversations[2] == TWO[:1]
    with pytest.raises(ValueError, match="row 2 has no column 'answer' or 'completion'"):
        forms.read(asked, COLUMNS)


def test_a_prompt_beside_messages_is_their_first_turn(tmp_path):
    """As in UltraChat."""
    row = {"messages": TWO, "prompt": TWO[0]["content"]}
    assert forms.read([row], COLUMNS).conversations == [TWO]
    assert forms.read(jsonl(tmp_path / "rows.jsonl", [row]), COLUMNS).conversations == [TWO]
    assert forms.read([row], COLUMNS, due=False).conversations == [TWO]


def test_what_is_no_row_is_none():
    for given in (["a", "b"], [("a", "b")], [], [7], [{"text": "a"}]):
        assert forms.read(given, COLUMNS) is None


@pytest.mark.parametrize(
    "row, message",
    [
        (
            TEXT | {"completion": "Rome"},
            "has 'answer' and 'completion', and which .* drop the othe",
        ),
        (
            TEXT | {"messages": TWO},
            "has 'messages' and 'answer', .* drop 'messages', to read 'prom",
        ),
        ({"messages": TWO, "completion": "a"}, "has 'messages' and 'completion', and which"),
        ({"messages": TWO, "prompt": "Who?"}, "'messages' beside 'prompt'.: the user's first turn"),
        ({"messages": TWO, "prompt": TWO[:1]}, "'messages' beside 'prompt'.: the user's first"),
        ({"messages": TWO}, "has 'messages', row 0 a prompt of text; expected rows of one form"),
        ({"prompt": TWO[:1], "answer": TWO[1:2]}, "has a prompt of messages, row 0 a prompt of te"),
        ({"text": "a"}, "has no column 'prompt'; its columns are text"),
        ({"prompt": "a"}, "has no column 'answer' or 'completion'; its columns are prompt"),
        ({"prompt": "a", "completion": None}, ": 'completion' is None; expected text"),
        ({"prompt": "a", "answer": TWO[1:2]}, r": 'answer' is \[.*; expected text"),
        ({"prompt": None, "answer": "a"}, ": 'prompt' is None; expected text"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_by_its_row(row, message, tmp_path):
    for given in ([TEXT, row], jsonl(tmp_path / "rows.jsonl", [TEXT, row])):
        with pytest.raises(ValueError, match=f"row 1 ?.*{message}"):
            forms.read(given, COLUMNS)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": TWO[:3], "answer": "Paris"}, "answer is 'Paris'; expected a list of one mess"),
        ({"prompt": TWO[:1], "completion": TWO[1:]}, "completion is .* expected a list of one"),
        (
            {"prompt": TWO[:1], "completion": TWO[2:3]},
            "completion is .* of the assistant, as prompt",
        ),
        ({"prompt": TWO[:2], "completion": TWO[3:]}, "prompt ends with the assistant's turn"),
        ({"prompt": [], "completion": TWO[3:]}, r"prompt is \[\]; expected a list of messages"),
        ({"prompt": TWO[:1], "completion": TWO[3:], "tools": ["x"]}, "has 'tools', with which"),
        ({"completion": TWO[3:]}, "has no column 'prompt'; its columns are completion"),
        ({"prompt": None, "completion": TWO[3:]}, "prompt is None; expected a list of messages"),
    ],
)
def test_messages_that_are_no_prompt_and_answer_are_refused(row, message):
    for due in (True, False):
        with pytest.raises(ValueError, match=f"row 1.*{message}"):
            forms.read([{"prompt": TWO[:3], "completion": TWO[3:]}, row], COLUMNS, due=due)


@pytest.mark.parametrize(
    "rows, message",
    [
        (TWO, "row 0 is one message, .* expected a list of conversations"),
        ([{"messages": TWO}, {"text": "a"}], "row 1 has no 'messages'; its keys are text"),
        ([{"messages": TWO, "tools": [{"name": "x"}]}], "row 0 has 'tools', with which"),
    ],
)
def test_what_is_no_row_of_messages_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        messages.among(rows)
