"""LAMA's facts and T-REx's sentences, read from a miniature in the published formats: no sentence
but those that state a fact, and no file but those of the first run."""

import json

import pytest
from support.lama_miniature import SENTENCES, jsonl, miniature

from msif.study.corpora import trex


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The miniature inside a study of its own, which keeps scratch/."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return miniature(tmp_path / "data")


def read(folder, annotators=None):
    return trex.statements(folder, trex.read_facts(folder), annotators)


def test_documents_are_the_sentences_that_state_a_fact_and_nothing_else(folder):
    found = read(folder)
    expected = {
        template.format(s=f["subject"], o=f["object"]): list(key)
        for key, f in trex.read_facts(folder).items()
        for template in SENTENCES[key[1]]
    }
    assert {x["text"]: x["facts"] for x in found} == {
        text: [fact] for text, fact in expected.items()
    } and len(found) == len(expected)
    simple = read(folder, ["Simple-Aligner"])
    assert {x["text"] for x in simple} == {text for text in expected if " was born in " in text}


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda at: (at / "relations.jsonl").unlink(),
            "lacks relations.jsonl. Put there(.|\n)*facebookresearch/LAMA",
        ),
        (
            lambda at: [p.unlink() for p in (at / "T-REx").iterdir()],
            r"lacks T-REx/\*.json. Put there(.|\n)*dump",
        ),
    ],
)
def test_a_missing_file_says_what_to_put_where(change, says, folder):
    change(folder)
    with pytest.raises(FileNotFoundError, match=says):
        read(folder)


def test_a_relation_that_lama_does_not_list_is_refused(folder):
    jsonl(folder / "TREx" / "P7.jsonl", [dict.fromkeys(trex.FIELDS, "P7")])
    with pytest.raises(
        ValueError, match="P7.jsonl has the relation P7, which relations.jsonl lacks"
    ):
        read(folder)


@pytest.mark.parametrize(
    "name, text, says",
    [
        (
            "T-REx/re-nlg_0.json",
            '[{"docid": "Q5", "text": "x"}]',
            "re-nlg_0.json, article Q5: KeyError 'triples'; expected T-REx",
        ),
        ("TREx/P19.jsonl", '{"sub_uri": \n', "P19.jsonl, line 1 is not JSON"),
        ("TREx/P19.jsonl", "{}\n", "P19.jsonl has no row with sub_uri"),
    ],
)
def test_another_format_is_refused_by_name(name, text, says, folder):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        read(folder)


@pytest.mark.parametrize("name", ["TREx/P106.jsonl", "relations.jsonl", "T-REx/re-nlg_1.json"])
def test_a_file_that_changed_since_the_first_run_is_refused(name, folder):
    first = read(folder)
    recorded = json.loads((folder / "digests.json").read_text())
    expected = next(group[name] for group in recorded.values() if name in group)
    path, before = folder / name, (folder / name).read_text()
    path.write_text(before.replace("Bomar", "Bomas") + " ")
    digests = f"Expected {expected}, found [0-9a-f]{{64}}"
    remedy = "remove '.*' from .*digests.json"
    with pytest.raises(ValueError, match=f"{name} has changed.*{digests}.*{remedy}"):
        read(folder)
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="found no such file|lacks relations"):
        read(folder)
    path.write_text(before)
    assert read(folder) == first and json.loads((folder / "digests.json").read_text()) == recorded
