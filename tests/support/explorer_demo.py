"""An explorer's page of four documents, one of them hostile, and a reader before it."""

from dataclasses import replace

import pytest

from msif.view.explorer import write
from msif.view.page import Document, Entry, Query
from msif.view.parts import Part
from support.explorer_reader import Reader

HOSTILE = "</script><script>document.title='owned';alert(1)</script><img src=x onerror=alert(2)>"
DOCUMENTS = [
    Document("news", ["Ada", " was", " born", " in", " London"]),
    Document("web", [" Bo", " came", " from", " Paris"], "About Bo"),
    Document("web", [HOSTILE], HOSTILE),
    Document("encyclopedia", ["London", " is", " a", " city"]),
]
LAYERS = ["layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp"]


def part(n, tokens, query):
    score = sum(tokens)
    return Part(n, 1, score, tokens, dict(zip(LAYERS, [score, -1.0, 2.0, -1.0])), query)


def queries():
    ours = [
        Entry(0, 1, 4.0, part(0, [3.0, 0.0, 0.5, 1.5, -1.0], [3.0, 1.0, 0.0])),
        Entry(2, 2, 1.0, part(2, [1.0], [2.0, -1.0, 0.0])),
        Entry(1, -1, -2.0, part(1, [-2.5, 0.5, 0.0, 0.0], [-3.0, 1.0, 0.0])),
    ]
    first = Query(
        "ada",
        ["Where was Ada", " born?"],
        [" London"],
        {"ours": ours, "bm25": [Entry(3, 1, 7.5), Entry(0, 2, 6.0)], "third": [Entry(1, 1, 1.0)]},
        [-0.25],
        "right answer",
        labels={0: "states it"},
    )
    second = replace(
        first,
        id="bo & co",
        prompt_words=["Where is Bo", " from?"],
        answer_words=[" Rome"],
        group="wrong answer",
        note="The model errs.",
        rankings={
            "ours": [Entry(1, 1, 1.0, part(1, [1.0, 1.0, 0.0, -1.0], [1.0, 0.0, 0.0]))],
            "bm25": [Entry(1, 1, 2.0)],
        },
        labels={},
    )
    return [
        first,
        second,
        replace(
            first, id="x", prompt_words=[HOSTILE, "?"], answer_words=[HOSTILE], group="wrong answer"
        ),
    ]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    about = "What this is. " + HOSTILE
    path = write(
        tmp_path_factory.mktemp("page") / "explorer.html",
        "Demo",
        DOCUMENTS,
        queries(),
        {"ours": "df/dw, nats", "bm25": "no unit", "third": ""},
        about,
    )
    return path.as_uri()


@pytest.fixture
def reader(browser, address):
    """A fresh page, wide and light; afterwards: no error was logged, no dialog was opened,
    nothing but files was asked for."""
    found = Reader(browser, address)
    browser.get("about:blank")
    found.logged()
    found.size(1400, 1000)
    found.scheme("light")
    found.open()
    yield found
    errors, addresses = found.logged()
    assert errors == [] and found.js("return document.title") != "owned"
    assert addresses and all(x.startswith(("file:///", "about:")) for x in addresses)
