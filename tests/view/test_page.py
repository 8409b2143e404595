"""The explorer's page: texts stay texts, equal input gives equal bytes, lists that do not fit are
named."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support.explorer_page import data_of

from msif.study.pipeline.report import elsewhere
from msif.view.page import TEMPLATE, Document, Entry, Query, page, write
from msif.view.parts import Part

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> & \u2028 {{data}}"
DOCUMENTS = [
    Document("news", ["Ada", " was", " born"], "A"),
    Document("web", [HOSTILE], HOSTILE),
    Document("web", ["unseen"]),
]
PART = Part(0, 1, 3.0, [1.0, 2.5, -0.5], {"h.0": 1.0, "h.1": 2.0}, [4.0, -1.0, 0.0])


def query(**changes):
    rankings = {
        "ours": [Entry(0, 1, 3.0, PART), Entry(1, -1, -2.0)],
        "bm25": [Entry(1, 1, 7.123456)],
    }
    return replace(
        Query(
            "first", ["Who", "?"], [" Ada"], rankings, [-0.1], "right", HOSTILE, {0: "states it"}
        ),
        **changes,
    )


def built(queries=None, documents=DOCUMENTS, methods=None, **options):
    return page(
        f"Demo {HOSTILE}",
        documents,
        queries or [query()],
        methods or {"ours": "df/dw, nats", "bm25": HOSTILE},
        HOSTILE,
        **options,
    )


def test_texts_survive_as_text_and_never_as_markup():
    html = built()
    assert "<script>alert" not in html and "<img" not in html and "<!--" not in html
    assert not set("<>&\u2028") & set(re.search('id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert html.count("<script") == html.count("</script>") == 2  # the data and the page's own
    found = data_of(html)
    assert (
        found["documents"]["1"]["words"] == [HOSTILE]
        and found["queries"][0]["note"] == found["about"] == HOSTILE
    )


def test_the_page_loads_nothing_and_says_so_to_the_browser():
    html = built()
    assert elsewhere(html) == []
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert (
        policy.startswith("default-src 'none'")
        and "unsafe" not in policy
        and policy.count("'sha256-") == 2
    )
    template = TEMPLATE.read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttpRequest"
        r"|https?://(?!www\.w3\.org/)",
        template,
    )


def test_equal_input_gives_equal_bytes_and_only_ranked_documents_are_in_it():
    assert built() == built() == built(documents=dict(enumerate(DOCUMENTS)))
    assert "unseen" not in built() and list(data_of(built())["documents"]) == ["0", "1"]


def test_the_data_are_what_was_given():
    found = data_of(built())
    assert found["layers"] == ["h.0", "h.1"] and list(found["methods"]) == ["ours", "bm25"]
    (one,) = found["queries"]
    assert one["rankings"] == {
        "ours": [[0, 1, 3.0, 1], [1, -1, -2.0, 0]],
        "bm25": [[1, 1, 7.123, 0]],
    }
    assert one["parts"] == {
        "0": {
            "score": 3.0,
            "tokens": [1.0, 2.5, -0.5],
            "layers": [1.0, 2.0],
            "query": [4.0, -1.0, 0.0],
        }
    }
    assert one["labels"] == {"0": "states it"} and one["logprobs"] == [-0.1]


def test_a_page_knows_n_where_it_is_given():
    assert data_of(built())["trained_on"] is None
    for n in (1, np.int64(948)):
        assert data_of(built(trained_on=n)) == data_of(built()) | {"trained_on": n}


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "8"])
def test_n_is_a_number_of_documents(wrong):
    with pytest.raises(ValueError, match="trained_on is .*; expected a whole number, at least 1"):
        built(trained_on=wrong)


def test_a_page_with_withheld_texts_has_no_word_of_any_document():
    html = built([query(note="")], withhold_texts=True)
    found = data_of(html)
    assert [d["words"] for d in found["documents"].values()] == [
        ["document 0 (text withheld: licence)"],
        ["document 1 (text withheld: licence)"],
    ]
    assert "born" not in html and found["documents"]["0"]["title"] is None
    assert found["queries"][0]["parts"]["0"]["tokens"] is None and found["queries"][0]["parts"][
        "0"
    ]["layers"] == [1.0, 2.0]


def test_some_documents_can_be_withheld_alone():
    found = data_of(built([query()], withhold_texts={0}))
    hidden, shown = (found["documents"][n]["words"] for n in "01")
    assert hidden == ["document 0 (text withheld: licence)"] and shown != hidden
    assert found["withheld"] is False and found["queries"][0]["parts"]["0"]["tokens"] is None


@pytest.mark.parametrize("number", ["0", 3, -1, 0.0, True, None])
def test_what_is_no_document_s_number_cannot_be_withheld(number):
    with pytest.raises(ValueError, match="withhold_texts has .*, which is the number of no docum"):
        built([query()], withhold_texts=[1, number])


def test_documents_to_be_withheld_are_a_set_of_numbers():
    whole = built([query()], withhold_texts={0})
    numbered = dict(enumerate(DOCUMENTS))
    assert built([query()], numbered, withhold_texts=[np.int64(0)]) == whole
    for wrong in ("0", None, 0):
        with pytest.raises(ValueError, match="withhold_texts is .*; expected True, False, or a s"):
            built([query()], withhold_texts=wrong)


def test_a_query_without_words_has_neither_their_numbers():
    (one,) = data_of(built([query(prompt_words=[], answer_words=[])]))["queries"]
    assert one["logprobs"] is None and one["parts"]["0"]["query"] is None


def test_a_page_grows_with_what_it_shows_alone():
    """About 7 bytes a number beside the words:
    30 documents of 300 tokens are well below a megabyte."""
    long = [Document("web", [f" word{t}" for t in range(300)]) for _ in range(30)]
    entries = [
        Entry(n, n + 1, 1 / (n + 1), Part(n, 1, 1.0, [(-1) ** t / (t + 7) for t in range(300)]))
        for n in range(30)
    ]
    size = len(built([query(rankings={"ours": entries}, labels={})], long)) - len(built())
    words_alone = len(json.dumps([d.words for d in long]))
    assert size - words_alone < 30 * 300 * 12


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(rankings={"other": []}), "'first' is ranked by \\['other'\\]"),
        (dict(logprobs=[-1, -2]), "'first': logprobs has 2 numbers for 1 words"),
        (dict(rankings={"ours": [Entry(9, 1, 1.0)]}), "document 9 is ranked, and not among"),
        (dict(rankings={"ours": [Entry(0, 0, 1.0)]}), "rank 0"),
        (dict(rankings={"ours": [Entry(0, 1, float("nan"))]}), "a score of nan"),
        (
            dict(rankings={"ours": [Entry(1, 1, 1.0, PART)]}),
            "document 1: tokens has 3 numbers for 1 words",
        ),
        (dict(prompt_words=["Who?"]), "document 0: query_tokens has 3 numbers for 2 words"),
        (
            dict(
                rankings={
                    "ours": [Entry(0, 1, 3.0, PART)],
                    "bm25": [Entry(0, 1, 3.0, replace(PART, tokens=[1.0, 2.0, 0.0]))],
                }
            ),
            "different parts",
        ),
    ],
)
def test_lists_that_do_not_fit_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        built([query(**bad)])


def test_pages_without_queries_or_with_equal_ids_or_layers_that_differ_are_refused():
    other = query(
        id="second", rankings={"ours": [Entry(0, 1, 3.0, replace(PART, layers={"h.0": 3.0}))]}
    )
    for queries, message in (
        ([query(), query()], "the same id"),
        ([query(), other], "expected those of the first part"),
    ):
        with pytest.raises(ValueError, match=message):
            built(queries)
    with pytest.raises(ValueError, match="0 queries"):
        page("x", DOCUMENTS, [], {"ours": ""})
    with pytest.raises(ValueError, match="words is one string"):
        built(documents=[DOCUMENTS[0], Document("a", "text")])


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "explorer.html"
    for _ in range(2):
        assert write(path, "Demo", DOCUMENTS, [query()], {"ours": "", "bm25": ""}) == path
    assert path.read_text("utf-8") == page("Demo", DOCUMENTS, [query()], {"ours": "", "bm25": ""})
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write(path, "Demo", DOCUMENTS, [query()], {"ours": ""})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
