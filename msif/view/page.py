"""The explorer's page: queries, the documents that each method ranks for them, and what their
scores are made of, as one self-contained file.

It loads nothing: style, script and data are inside, and its Content-Security-Policy forbids the
rest. Texts are data: they go into the page as JSON with <, > and & escaped, and the script shows
them by `textContent`. Equal input gives equal bytes.
"""

import base64
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from msif.core import checks
from msif.core.files import write_text
from msif.view.parts import Part
from msif.view.words import visible

TEMPLATE = Path(__file__).with_name("explorer.html")
WITHHELD = "document {} (text withheld: licence)"


@dataclass(frozen=True)
class Document:
    """One text of the page.

    source: where it is from, or its kind; the page filters by it. words: strings that are shown
    verbatim, one after the other, spaces included: `words(tokenizer, ids)` makes them of tokens; a
    text without token scores may be a single one."""

    source: str
    words: list
    title: str | None = None


@dataclass(frozen=True)
class Entry:
    """One document in one method's ranking.

    rank: 1, 2, … from the top, −1, −2, … from the bottom (opponents). score: the method's own.
    part: what the plain score is made of (`parts.Part`), if that is to be shown; a document has
    one part per query."""

    document: int
    rank: int
    score: float
    part: Part | None = None


@dataclass(frozen=True)
class Query:
    """One query and its rankings.

    id: unique, used in links. prompt_words, answer_words: verbatim, as in `Document`; none at all
    withholds the text (the page then shows the id). rankings: {method: [Entry]}. logprobs: log p of
    each answer word, nats. group: to filter by, such as "right answer". note: a line of text.
    labels: {document number: what is known of it}, such as "states the fact"."""

    id: str
    prompt_words: list
    answer_words: list
    rankings: dict
    logprobs: list | None = None
    group: str = ""
    note: str = ""
    labels: dict = field(default_factory=dict)


def page(title, documents, queries, methods, about="", withhold_texts=False, trained_on=None):
    """The HTML page, as a string.

    documents: list, or {number: Document}; only those that are ranked go into the page. queries:
    [Query]. methods: {name: one line that says what it is, with the unit of its score}, the first
    two are shown first. about: plain text, in the page's help. withhold_texts: no word of any
    document is written, nor its title (what can be shown of third-party texts); scores, ranks,
    sources and layers are. Or a set: the numbers of the documents of which this holds. trained_on:
    N, the number of documents that the loss of their stage is a mean over; each document with a
    part then shows the effect of leaving it out, −(the part's score) / N [nats]: the predicted
    change of the answer's log-probability. None: no effects. Raises ValueError naming the query or
    document whose lists do not fit together, for a number to be withheld that no document has, and
    for an N that is no whole number of at least 1."""
    methods, queries = dict(methods), list(queries)
    shown = content(documents, queries, methods, withhold_texts, trained_on)
    return filled({"title": title, "about": about, "methods": methods, **shown})


def filled(data, slots=None):
    """The template with its data, JSON values with a "title". slots: what stands in its places for
    tabs (`view.tabs`); by default nothing."""
    template = TEMPLATE.read_text("utf-8")
    template = re.sub(r"\{\{tab:(\w+)\}\}", lambda found: (slots or {}).get(found[1], ""), template)
    title = escape(visible(data["title"]))
    parts = {"title": title, "csp": _policy(template), "data": _json(data)}
    return re.sub(r"\{\{(title|csp|data)\}\}", lambda found: parts[found[1]], template)


def write(
    path, title, documents, queries, methods, about="", withhold_texts=False, trained_on=None
):
    """Write `page(…)` to a file, whole or not at all; returns its path."""
    path = Path(path)
    html = page(title, documents, queries, methods, about, withhold_texts, trained_on)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def content(documents, queries, methods, withhold, trained_on):
    """What the page knows of documents and queries, as JSON values; every list is checked against
    what it belongs to. The arguments are those of `page`, withhold its withhold_texts."""
    if not queries or not methods:
        raise ValueError(
            f"{len(queries)} queries and {len(methods)} methods: expected at least one of each"
        )
    if len({q.id for q in queries}) < len(queries):
        raise ValueError(
            "two queries have the same id: links lead to a query by its id, make them differ"
        )
    documents = documents if isinstance(documents, Mapping) else dict(enumerate(documents))
    withhold = _withheld(withhold, documents)
    entries = (e for q in queries for ranking in q.rankings.values() for e in ranking)
    layers = next((list(e.part.layers) for e in entries if e.part and e.part.layers), [])
    rows = [_query(q, documents, methods, layers, withhold) for q in queries]
    shown = sorted({e[0] for row in rows for ranking in row["rankings"].values() for e in ranking})
    return {
        "layers": layers,
        "documents": {n: _document(n, documents[n], _hidden(n, withhold)) for n in shown},
        "queries": rows,
        "withheld": withhold is True,
        "trained_on": None if trained_on is None else checks.whole("trained_on", trained_on),
    }


def wordless(query):
    """A `Query` without its words."""
    return replace(query, prompt_words=[], answer_words=[], logprobs=None, note="")


def _withheld(withhold, documents):
    """True, False, or the numbers of documents, as a set."""
    if isinstance(withhold, bool):
        return withhold
    if not isinstance(withhold, Set | list | tuple):
        raise ValueError(
            f"withhold_texts is {reprlib.repr(withhold)}; expected True, False, or a set of "
            f"documents' numbers"
        )
    for n in withhold:
        if isinstance(n, bool) or not hasattr(n, "__index__") or n not in documents:
            raise ValueError(
                f"withhold_texts has {n!r}, which is the number of no document; expected whole "
                f"numbers of the {len(documents)} documents"
            )
    return set(withhold)


def _hidden(n, withhold):
    return withhold if isinstance(withhold, bool) else n in withhold


def _document(n, document, withhold):
    if withhold:
        return {"source": document.source, "title": None, "words": [WITHHELD.format(n)]}
    if isinstance(document.words, str):
        raise ValueError(f"document {n}: words is one string; expected a list of strings")
    return {"source": document.source, "title": document.title, "words": list(document.words)}


def _query(q, documents, methods, layers, withhold):
    if unknown := set(q.rankings) - set(methods):
        raise ValueError(
            f"query {q.id!r} is ranked by {sorted(unknown)}; the methods are {sorted(methods)}"
        )
    size = len(q.prompt_words) + len(q.answer_words)
    _fits(f"query {q.id!r}: logprobs", q.logprobs if size else None, len(q.answer_words))
    parts = {}
    for e in (e for ranking in q.rankings.values() for e in ranking):
        where = f"query {q.id!r}, document {e.document}"
        if e.document not in documents:
            raise ValueError(f"{where} is ranked, and not among the documents")
        if e.rank == 0:
            raise ValueError(
                f"{where} has rank 0; expected 1, 2, … from the top or −1, −2, … from the bottom"
            )
        if e.part is None:
            continue
        if parts.setdefault(e.document, part := replace(e.part, rank=1)) != part:
            raise ValueError(
                f"{where} has different parts in two rankings: a document has one part per query"
            )
        _fits(f"{where}: tokens", e.part.tokens, len(documents[e.document].words))
        _fits(f"{where}: query_tokens", e.part.query_tokens if size else None, size)
        if e.part.layers is not None and list(e.part.layers) != layers:
            raise ValueError(
                f"{where}: layers {list(e.part.layers)[:3]} …; "
                f"expected those of the first part, {layers[:3]} …"
            )

    def listed(e):
        return [e.document, e.rank, _number(e.score), int(e.part is not None)]

    def taken_apart(n, p):
        return {
            "score": _number(p.score),
            "tokens": None if _hidden(n, withhold) else _numbers(p.tokens),
            "layers": _numbers(None if p.layers is None else p.layers.values()),
            "query": _numbers(p.query_tokens) if size else None,
        }

    ranked = [name for name in methods if name in q.rankings]
    return {
        "id": str(q.id),
        "prompt": list(q.prompt_words),
        "answer": list(q.answer_words),
        "logprobs": _numbers(q.logprobs) if size else None,
        "group": q.group,
        "note": q.note,
        "labels": {int(n): text for n, text in q.labels.items()},
        "rankings": {name: [listed(e) for e in q.rankings[name]] for name in ranked},
        "parts": {n: taken_apart(n, p) for n, p in sorted(parts.items())},
    }


def _fits(what, values, size):
    if values is not None and len(values) != size:
        raise ValueError(f"{what} has {len(values)} numbers for {size} words")


def _number(x):
    """Four significant digits are what a page shows; ValueError for what JSON lacks."""
    if not math.isfinite(x):
        raise ValueError(f"a score of {x}: expected a finite number")
    return float(f"{x:.4g}")


def _numbers(values):
    return None if values is None else [_number(x) for x in values]


def _json(data):
    """JSON that cannot end a <script> element, start a comment in it, or fail to be encoded."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _policy(template):
    """Nothing may be loaded; of inline style and script, the template's own alone."""

    def allowed(tag):
        code = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[1]
        return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {allowed('style')}; script-src {allowed('script')}; "
        f"base-uri 'none'; form-action 'none'"
    )
