"""The influence explorer: a self-contained HTML page of queries and their ranked documents, and the
same view inline in JupyterLab.

    from msif.show import explorer

    explorer.show(scores, zip(prompts, answers), texts)  # one's own scores, of any kind
    explorer.show(scores, queries, documents, tokenizer=tokenizer, model=base, w=w)  # tokens shaded

    shown = explorer.prepared(scores, zip(prompts, answers), texts)
    explorer.write("mine.html", "My models", **shown)

The page is one file that loads nothing: style, script and data are inside, and its
Content-Security-Policy forbids the rest. Texts are data: they go into the page as JSON with <, >
and & escaped, and the script shows them by `textContent`. Equal input gives equal bytes.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import torch

from msif.core.data import NO_LOSS, Sequence
from msif.core.extras import need
from msif.core.files import write_text
from msif.core.influence import Scores, check, precondition, query_gradients
from msif.show.parts import Part, answer_log_probabilities, extremes, query_tokens, split

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


def words(tokenizer, ids):
    """The piece of text that each token adds: strings whose concatenation is the decoded text,
    spaces of a word-level tokenizer included.

    A token that ends inside a character (byte-level tokenizers split one over several) adds
    nothing: the one that completes it has it all."""

    def decode(part):
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    found = []
    start, shown = 0, 0  # ids[start:shown]: the context that decides about a space before the next
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:shown])) if shown else "", decode(list(ids[start:end]))
        if now.endswith("\ufffd") and end < len(ids):
            found.append("")
        else:
            found.append(now[len(before) :])
            start, shown = shown, end
    return found


def page(title, documents, queries, methods, about="", withhold_texts=False):
    """The HTML page, as a string.

    documents: list, or {number: Document}; only those that are ranked go into the page. queries:
    [Query]. methods: {name: one line that says what it is, with the unit of its score}, the first
    two are shown first. about: plain text, in the page's help. withhold_texts: no word of any
    document is written, nor its title (what can be shown of third-party texts); scores, ranks,
    sources and layers are. Raises ValueError naming the query or document whose lists do not fit
    together."""
    data = {
        "title": title,
        "about": about,
        "methods": dict(methods),
        **_data(documents, list(queries), methods, withhold_texts),
    }
    template = TEMPLATE.read_text("utf-8")
    parts = {"title": escape(title), "csp": _policy(template), "data": _json(data)}
    return re.sub(r"\{\{(title|csp|data)\}\}", lambda found: parts[found[1]], template)


def write(path, title, documents, queries, methods, about="", withhold_texts=False):
    """Write `page(…)` to a file, whole or not at all; returns its path."""
    path = Path(path)
    html = page(title, documents, queries, methods, about, withhold_texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def show(scores, queries, documents, *, title="Influence explorer", height=760, **options):
    """The page inline in a notebook, in a sandbox that may run its script and nothing else: an
    IPython `HTML`.

    The arguments are those of `prepared`, where the rest are explained; height in pixels."""
    html = page(title, **prepared(scores, queries, documents, **options))
    look = f'title="{escape(title)}" style="width:100%;height:{int(height)}px;border:0"'
    return need("IPython.display").HTML(
        f'<div><iframe {look} sandbox="allow-scripts" srcdoc="{escape(html)}"></iframe></div>'
    )


def prepared(
    scores,
    queries,
    documents,
    *,
    tokenizer=None,
    model=None,
    w=None,
    tuned=None,
    stages=None,
    sources=None,
    titles=None,
    groups=None,
    notes=None,
    labels=None,
    methods=None,
    count=10,
    opponents=5,
    about="",
    batch_size=8,
):
    """The arguments of `page` and `write` but the title, {"documents", "queries", "methods",
    "about"}, from scores (q, n), positive = proponent.

    scores: `influence.Scores`, a (q, n) tensor or array, or several methods' as {name: either}.
    queries: q pairs (prompt, answer), or `data.Sequence`s. documents: n texts, or `data.Sequence`s.
    Sequences need the `tokenizer`.

    What else is given, is shown:
    model, w              documents' tokens and layers. model: `layers.Tracked`, of the documents'
                          stage; w: the preconditioned queries, as `influence.score` has them; both
                          queries and documents must be Sequences. The parts are of this score,
                          whatever the method.
    model, tuned, stages  these and the share of each of the query's own tokens; w is computed where
                          it is not given
    tuned                 the log-probability of each answer token, at the fine-tuned model
                          (`layers.Tracked`)
    sources, titles       one string a document
    groups, notes         one string a query
    labels                one {document number: label} a query
    methods               {name: one line about it}
    count, opponents      how many documents from the top and, of scores that have a sign, from the
                          bottom

    Raises ValueError for sizes that do not fit together, and where half of what a view needs is
    given."""
    tables, documents, queries = _tables(scores), list(documents), list(queries)
    _check_sizes(
        tables,
        (queries, documents),
        {
            "sources": (sources, documents),
            "titles": (titles, documents),
            "groups": (groups, queries),
            "notes": (notes, queries),
            "labels": (labels, queries),
        },
    )
    highlights = _highlights(queries, documents, model, w, tuned, stages)
    both = [_both_words(query, tokenizer) for query in queries]
    lowest = {name: opponents if (values < 0).any() else 0 for name, values in tables.items()}
    tops = [
        {name: extremes(values[k], count, lowest[name]) for name, values in tables.items()}
        for k in range(len(queries))
    ]
    shown = [_once(top.values()) for top in tops]

    def document(n):
        source, title = sources[n] if sources else "", titles[n] if titles else None
        return Document(source, _words(documents[n], tokenizer), title)

    texts = {n: document(n) for n in sorted({n for ranked in shown for n, _ in ranked})}
    if highlights and w is None:
        w = precondition(query_gradients(tuned, queries), stages)[0]
    columns = {"group": groups, "note": notes, "labels": labels}
    found = []
    for k, query in enumerate(queries):
        if highlights:
            parts = _parts(model, tuned, w, query, k, stages, documents, shown[k], batch_size)
        else:
            parts = _layered(scores, k, shown[k])
        rankings = {
            name: [Entry(n, rank, float(tables[name][k, n]), parts.get(n)) for n, rank in ranked]
            for name, ranked in tops[k].items()
        }
        given = {name: column[k] for name, column in columns.items() if column is not None}
        prompt, answer = both[k]
        logprobs = _log_probabilities(tuned, query, answer)
        found.append(Query(str(k + 1), prompt, answer, rankings, logprobs, **given))
    return {
        "documents": texts,
        "queries": found,
        "methods": {name: (methods or {}).get(name, "") for name in tables},
        "about": about,
    }


def _once(rankings):
    """[(document, rank)] of all rankings, each document once, with its rank in the first of
    them."""
    found = {n: (n, rank) for ranked in reversed(rankings) for n, rank in ranked}
    return list(found.values())


def _check_sizes(tables, rows, columns):
    size = tuple(map(len, rows))
    for name, values in tables.items():
        if tuple(values.shape) != size:
            raise ValueError(
                f"scores of {name!r} have shape {tuple(values.shape)}; "
                f"expected {size}, queries by documents"
            )
    for name, (column, of) in columns.items():
        if column is not None and len(column) != len(of):
            raise ValueError(f"{name} has {len(column)} entries; expected {len(of)}")


def _parts(model, tuned, w, query, k, stages, documents, ranked, batch_size):
    """{document: Part} of query k, the k-th of w; with stages, over its own tokens too."""
    one = {name: v[k : k + 1] for name, v in w.items()}
    found = split(model, one, documents, ranked, batch_size=batch_size)
    if stages is not None:
        chosen = [documents[n] for n, _ in ranked]
        rows = query_tokens(model, tuned, query, stages, chosen, batch_size=batch_size)
        found = [replace(part, query_tokens=row) for part, row in zip(found, rows)]
    return {part.document: part for part in found}


def _tables(scores):
    """{method: (q, n) float64 on the CPU}."""
    scores = scores if isinstance(scores, Mapping) else {"influence": scores}
    if not scores:
        raise ValueError(
            "there are no scores; expected influence.Scores, a (queries, documents) tensor, "
            "or {method: either}"
        )
    return {
        name: torch.as_tensor(x.values if isinstance(x, Scores) else x).detach().double().cpu()
        for name, x in scores.items()
    }


def _layered(scores, k, ranked):
    """{document: Part} by layer alone, of the first `Scores` that have layers; else none."""
    tables = scores.values() if isinstance(scores, Mapping) else [scores]
    layered = next((x for x in tables if isinstance(x, Scores) and x.layers), None)
    if layered is None:
        return {}

    def part(n, rank):
        layers = {name: float(x[k, n]) for name, x in layered.layers.items()}
        return Part(n, rank, float(layered.values[k, n]), layers=layers)

    return {n: part(n, rank) for n, rank in ranked}


def _log_probabilities(tuned, query, answer):
    """Of each answer word, where there is a model and each of them has one."""
    found = []
    if tuned is not None and isinstance(query, Sequence):
        found = answer_log_probabilities(tuned.model, [query])[0]
    return found if len(found) == len(answer) else None


def _highlights(queries, documents, model, w, tuned, stages):
    """Are documents to be taken apart? ValueError where half of what that needs is given."""
    if model is None:
        if w is not None or stages is not None:
            raise ValueError(
                "w or stages without model: "
                "give model (of the documents' stage) too, or none of them"
            )
        return False
    if w is None and stages is None:
        raise ValueError(
            "model without w (or tuned and stages): "
            "give them too, to have tokens shaded, or leave model out"
        )
    if stages is not None:
        check(stages)
        if tuned is None:
            raise ValueError(
                "stages without tuned: give the model of the last stage, where queries are measured"
            )
    for name, rows in (("queries", queries), ("documents", documents)):
        if not all(isinstance(x, Sequence) for x in rows):
            raise ValueError(
                f"{name} are not all data.Sequence: to be taken apart they must be tokenised, "
                f"see data.encode_documents and encode_answers"
            )
    return True


def _words(text, tokenizer):
    """The words of a text, or of a `Sequence`."""
    if isinstance(text, str):
        return [text]
    if not isinstance(text, Sequence):
        raise ValueError(f"a text of type {type(text).__name__}: expected str or data.Sequence")
    if tokenizer is None:
        raise ValueError(
            "data.Sequence without tokenizer: give the one that made them, to have their words"
        )
    return words(tokenizer, text.input_ids)


def _both_words(query, tokenizer):
    """(prompt words, answer words): the answer is what carries a label, or the second of a pair."""
    if isinstance(query, Sequence):
        if isinstance(query.labels, int) or all(y == NO_LOSS for y in query.labels):
            raise ValueError(
                f"query {query.index} has no labelled token: "
                f"expected the answer's, see data.encode_answers"
            )
        split_at = next(t for t, y in enumerate(query.labels) if y != NO_LOSS)
        found = _words(query, tokenizer)
        return found[:split_at], found[split_at:]
    if isinstance(query, str) or len(query) != 2:
        raise ValueError(f"query {query!r}: expected a pair (prompt, answer) or a data.Sequence")
    return [query[0]], [" " + query[1]]


def _data(documents, queries, methods, withhold):
    """What the page knows, as JSON values; every list is checked against what it belongs to."""
    if not queries or not methods:
        raise ValueError(
            f"{len(queries)} queries and {len(methods)} methods: expected at least one of each"
        )
    if len({q.id for q in queries}) < len(queries):
        raise ValueError(
            "two queries have the same id: links lead to a query by its id, make them differ"
        )
    documents = documents if isinstance(documents, Mapping) else dict(enumerate(documents))
    entries = (e for q in queries for ranking in q.rankings.values() for e in ranking)
    layers = next((list(e.part.layers) for e in entries if e.part and e.part.layers), [])
    rows = [_query(q, documents, methods, layers, withhold) for q in queries]
    shown = sorted({e[0] for row in rows for ranking in row["rankings"].values() for e in ranking})
    return {
        "layers": layers,
        "documents": {n: _document(n, documents[n], withhold) for n in shown},
        "queries": rows,
        "withheld": withhold,
    }


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

    def taken_apart(p):
        return {
            "score": _number(p.score),
            "tokens": None if withhold else _numbers(p.tokens),
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
        "parts": {n: taken_apart(p) for n, p in sorted(parts.items())},
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
