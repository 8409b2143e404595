"""WebNLG's texts: each once, with readable triples; and what is refused."""

import pytest
from support.webnlg_miniature import NAMES, miniature, write

from msif.study.corpora.webnlg_texts import FILES, read_texts, readable, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), miniature())


def test_a_text_of_several_entries_states_the_triples_of_all(folder):
    old = [row for row in read_texts(folder) if row["text"] == "All towns are old."]
    assert len(old) == 1 and len(old[0]["triples"]) == len(NAMES)


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ("A_Suárez_Airport", "A Suárez Airport"),
        ('"Tirstrup"@en', "Tirstrup"),
        ("Nord_(album)", "Nord"),
        ("(66063)", "(66063)"),
        ('"1732.0"^^<http://www.w3.org/2001/XMLSchema#double>', "1732.0"),
        ('"10,  14/3"', "10, 14/3"),
    ],
)
def test_entities_and_literals_become_readable(raw, wanted):
    assert readable(raw) == wanted


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ("leaderName", "leader name"),
        ("ISBN_number", "isbn number"),
        ("band/artist", "band or artist"),
        ("elevationAboveTheSeaLevel_(in_metres)", "elevation above the sea level"),
    ],
)
def test_properties_become_words(raw, wanted):
    assert words(raw) == wanted


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": 1, "category": "x", "texts": []}',
        '{"id": 1, "category": "x", "texts": [], "triples": [["a", "b"]]}',
    ],
)
def test_a_broken_line_is_named(folder, tmp_path, line):
    broken = write(tmp_path, miniature())
    (broken / FILES[1]).write_text((folder / FILES[1]).read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(ValueError, match=rf"dev.jsonl, line {len(NAMES) + 1}: .*expected"):
        read_texts(broken)
