"""What the folder of a command remembers: the pair, and for `show` the last trace."""

import argparse
import json
import re

import pytest
from support.command import files_of, run, table_of
from support.own_pair import build

from msif.options import LONGEST_ANSWER, settings

pytestmark = pytest.mark.filterwarnings("ignore:the largest score:UserWarning")  # tiny data


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


def test_the_folder_remembers_and_asks_again(pair, tmp_path, capsys):
    work = tmp_path / "work"
    assert run("fit", *files_of(pair, work)) == 0
    assert run("trace", "--folder", work, "--ask", "Where was Gus born?", "--answer", "Rome") == 0
    first = table_of(work)
    assert set(first["answer"]) == {"Rome"} and len(first) == 10
    assert "remembered from" in capsys.readouterr().out
    assert run("show", "--folder", work, "--raw", "--top", 2) == 0
    shown = capsys.readouterr().out
    best = table_of(work)
    assert len(best) == 2 and (best["score"].diff().dropna() <= 0).all()
    assert "Where was Gus born? → Rome" in shown and "explorer.html" in shown
    assert run("trace", "--folder", work, "--ask", "Where was Bo born?", "--among", "rows") == 0
    assert "Where was Bo born? → Paris" in capsys.readouterr().out
    assert len(list(work.glob("factors-*"))) == 2


def test_only_the_pair_is_remembered_and_by_show_the_last_trace(pair, tmp_path, capsys):
    work, ask = tmp_path / "work", ["--ask", "Where was Gus born?", "--answer", "Rome"]
    assert run("plan", *files_of(pair, work)) == 0 and not work.exists()
    given = ["--damping", 10, "--limit", 5, "--top", 2, "--raw", "--samples", 1]
    assert run("trace", *files_of(pair, work), *ask, *given) == 0
    capsys.readouterr()
    assert run("show", "--folder", work) == 0
    shown = capsys.readouterr().out
    assert "damping 10," in shown and shown.count("Rome   (log p = ") == 1
    assert (
        "score*" in shown
        and len(shown.split("rank  document")[1].split("* ranked")[0].splitlines()) == 4
    )
    assert run("trace", "--folder", work, *ask) == 0
    asked = capsys.readouterr().out
    assert "damping 0.001," in asked and "normalised*" in asked and "--samples 1" in asked
    assert "\n   10 " in asked


def test_a_value_that_nothing_can_mean_is_not_remembered(pair, tmp_path, capsys):
    work, ask = tmp_path / "work", ["--ask", "Where was Bo born?", "--answer", "Paris"]
    assert run("fit", *files_of(pair, work)) == 0
    for wrong in (("--samples", "0"), ("--batch-size", "0"), ("--max-length", "1")):
        before = (work / "settings.json").read_bytes()
        assert run("trace", "--folder", work, *ask, *wrong) == 1
        assert f"{wrong[0]} is {wrong[1]}: expected" in capsys.readouterr().err
        assert (work / "settings.json").read_bytes() == before


@pytest.mark.parametrize(
    "edited, message",
    [
        ({"top": "10"}, "--top is '10', in .*: expected a whole number"),
        ({"batch_size": None}, "--batch-size is None"),
        ({"samples": True}, "--samples is True"),
        ({"damping": "0.1"}, "--damping is '0.1'"),
        ({"base": ["a"]}, "--base is"),
        ({"ask": [["a"]]}, "damaged .ask."),
        ({"raw": "false"}, "damaged .raw."),
        ([1], "damaged .a list."),
    ],
)
def test_settings_that_were_edited_wrongly_are_refused_by_name(edited, message, tmp_path, capsys):
    kept = {x: "y" for x in ("base", "tuned", "documents", "rows")} | {"ask": [["a", None]]}
    text = json.dumps(kept | edited if isinstance(edited, dict) else edited)
    (tmp_path / "settings.json").write_text(text)
    assert run("show", "--folder", tmp_path) == 1
    assert re.search(message, capsys.readouterr().err)


def test_paths_are_remembered_whole_and_hub_ids_as_they_are(pair, tmp_path, capsys, monkeypatch):
    """Asked from another directory, where those names are another pair, it is the same pair."""
    ask = ["--ask", "Where was Gus born?", "--answer", "Rome"]
    monkeypatch.chdir(pair)
    names = ("base", "tuned", "documents.jsonl", "rows.jsonl")
    given = [y for x in names for y in (f"--{x.partition('.')[0]}", x)]
    work = tmp_path / "work"
    assert run("trace", *given, "--folder", work, *ask) == 0
    kept, best = json.loads((work / "settings.json").read_text()), table_of(work)
    assert [kept[x.partition(".")[0]] for x in names] == [str(pair / x) for x in names]
    (tmp_path / "base").symlink_to(pair / "tuned")
    (tmp_path / "tuned").symlink_to(pair / "base")
    monkeypatch.chdir(tmp_path)
    assert run("trace", "--folder", "work", *ask) == 0
    assert table_of(work).equals(best)
    hub = dict(base="a/base", documents="a/texts", folder="work", command="fit")
    chosen = settings(argparse.Namespace(**hub))
    assert chosen.base == "a/base" and chosen.documents == "a/texts"


@pytest.mark.parametrize(
    "refused",
    [
        ["trace", "--ask", "Where was Bo born?", "--answer", " "],
        ["trace", "--ask", "Where was Bo born?", "--alpha", 0],
        ["fit"],
    ],
)
def test_the_last_trace_is_the_last_that_came_to_its_end(refused, pair, tmp_path, capsys):
    """Neither fitting nor a trace that is refused takes it away."""
    work, ask = tmp_path / "work", ["--ask", "Where was Gus born?", "--answer", "Rome"]
    assert run("trace", *files_of(pair, work), *ask, "--top", 2, "--damping", 10) == 0
    before = (work / "settings.json").read_bytes()
    assert run(*refused, "--folder", work) == (refused[0] == "trace")
    assert (work / "settings.json").read_bytes() == before
    capsys.readouterr()
    assert run("show", "--folder", work) == 0
    shown = capsys.readouterr().out
    assert "Where was Gus born? → Rome" in shown and "damping 10," in shown


def test_help_says_how_long_an_own_answer_is_at_most(capsys):
    with pytest.raises(SystemExit):
        run("trace", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert f"else as in the longest row, at most {LONGEST_ANSWER}" in said
