"""The table of an answer's highest documents."""

import re
from types import SimpleNamespace

import torch

from msif.study.case_studies import tables


def portion():
    kinds = [
        {"kind": "wiki", "title": f"<{n}>", "text": f"words {n}", "document": n} for n in range(5)
    ]
    corpus = SimpleNamespace(documents=kinds)
    row = {"prompt": "Who?", "answer": "A & B", "how": "greedy", "logprob": -3.21}
    row["found"] = {"embeddings": [0, 4], "bm25": [4, 3]}
    case = SimpleNamespace(rows=[row], bed=SimpleNamespace(corpus=corpus))
    raw = torch.tensor([[1.0, -2.0, 3.0, 4.0, 5.0]])
    table = {"multi_stage/raw": raw, "multi_stage/normalised": raw.flip(1)}
    return SimpleNamespace(case=case, table=table, numbers=[0, 2, 4, 6, 8])


def lines(html):
    found = re.findall("<tr>(.*?)</tr>", html)
    return [re.findall("<t[hd].*?>(.*?)</t[hd]>", line) for line in found]


def test_documents_are_ranked_by_the_normalised_score_with_their_self_influence():
    html = tables.highest(portion(), [0.5, 0.25, 7.0, 8.0, 9.0], count=3)
    head, *rows = lines(html)
    assert head == list(tables.COLUMNS)
    assert rows == [
        ["1", "+1", "+5", "0.5", "embeddings", "wiki", "&lt;0&gt;"],
        ["2", "-2", "+4", "0.25", "chance", "wiki", "&lt;1&gt;"],
        ["3", "+3", "+3", "7", "chance", "wiki", "&lt;2&gt;"],
    ]
    assert "A &amp; B" in html and "-3.2 nats" in html and "of all 5: 7" in html


def test_a_text_is_shown_where_it_may_be_and_fewer_documents_are_no_matter():
    assert "words" not in tables.highest(portion(), [1.0] * 5)
    head, *rows = lines(tables.highest(portion(), [1.0] * 5, show_texts=True))
    assert head[-1] == "document" and len(rows) == 5 and rows[0][-1] == "words 0"


def test_how_many_of_the_highest_a_search_found_and_how_many_of_all():
    found = tables.searched(portion(), count=4)
    assert found["highest"].tolist() == [0.5] and found["all"].tolist() == [3 / 5]
