"""Tabs of three stages, whose documents have the same numbers, for the demo's queries."""

from dataclasses import replace

from msif.view.page import Document, Entry
from support.explorer_demo import DOCUMENTS, part, queries

METHODS = {"ours": "df/dw, nats", "bm25": "no unit", "third": ""}
ROWS = [Document("", ["Where", " is", " Cy?", " Rome"]), Document("", ["Who", "?", " Ada"])]
PAIRS = [Document("", ["Rome", "\n≻ ", "Oslo"])]


def tabs_of():
    """{name: a tab}; the second has another method, too, and no opponents, the third one pair."""

    def ranked(*entries):
        return [replace(x, rankings={"ours": list(entries)}, labels={}) for x in queries()]

    rows = ranked(
        Entry(1, 1, 5.0, part(1, [5.0, 0.0, 0.0], [3.0, 1.0, 0.0])),
        Entry(0, 2, 3.0, part(0, [0.0, 0.0, 1.0, 2.0], [3.0, 1.0, 0.0])),
    )
    rows = [replace(x, rankings=x.rankings | {"fourth": [Entry(0, 1, 1.0)]}) for x in rows]
    pair = Entry(0, 1, 2.0, part(0, [2.5, 0.0, -0.5], [3.0, 1.0, 0.0]))
    return {
        "pre-training documents": {
            "documents": DOCUMENTS,
            "queries": queries(),
            "methods": METHODS,
            "note": "Stage 1 of 3.",
        },
        "fine-tuning rows": {
            "documents": ROWS,
            "queries": rows,
            "methods": {"ours": METHODS["ours"], "fourth": "of rows"},
        },
        "preference pairs": {
            "documents": PAIRS,
            "queries": ranked(pair),
            "methods": METHODS,
            "note": "A pair.",
        },
    }
