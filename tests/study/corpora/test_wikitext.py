"""WikiText's paragraphs: under their headings, and spelled as people write."""

import pytest

from msif.study.corpora import neighbours, wikitext

LONG = "The lobster , a crustacean , is 0 @.@ 7 m long ( 2 feet ) " + "and blue " * 12 + ". "
LINES = [
    *("= Homarus gammarus =", LONG, "= = Description = =", "Short .", LONG),
    *("= = = Size = = =", LONG, "= = Life = =", LONG, "= Du Fu =", LONG),
]
FILE = "".join(f" {line} \n \n" for line in LINES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "wiki.test.txt").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text, expected",
    [
        (" It 's 0 @.@ 7 km , or 1 @,@ 000 m . ", "It's 0.7 km, or 1,000 m."),
        (
            'a self @-@ made man ( 5 % ) : " yes , no " ; they don \'t',
            'a self-made man (5%): "yes, no"; they don\'t',
        ),
        ("the brothers ' ship", "the brothers' ship"),
        ("2003 – 04 <unk> <unk> .", "2003 – 04 <unk> <unk>."),
    ],
)
def test_words_are_spelled_as_people_write(text, expected):
    assert wikitext.spelled(text) == expected


def test_a_paragraph_is_under_all_its_headings_and_short_ones_are_left_out(folder):
    found = wikitext.paragraphs(folder / "texts", "wiki.*.txt")
    assert [x["title"] for x in found] == [
        "Homarus gammarus",
        "Homarus gammarus, Description",
        "Homarus gammarus, Description, Size",
        "Homarus gammarus, Life",
        "Du Fu",
    ]
    assert all(x["text"].startswith("The lobster, a crustacean, is 0.7 m long (2") for x in found)


def test_they_are_a_corpus_of_neighbours(folder):
    corpus = {"name": "w", "source": "texts", "paragraphs": "wiki.*.txt", "limit": 4}
    found = neighbours.documents(folder, [corpus])
    assert len(found) == 4 and {x["kind"] for x in found} == {"w"}
    assert all(x["title"] and x["text"].startswith("The lobster") for x in found)
    assert neighbours.documents(folder, [corpus]) == found


def test_files_that_are_not_there_are_named_with_what_belongs_there(folder):
    corpus = {"name": "w", "source": "texts", "paragraphs": "none.*.txt", "limit": 4}
    with pytest.raises(FileNotFoundError, match="has no none.*: put there WikiText's text files"):
        neighbours.documents(folder, [corpus])
