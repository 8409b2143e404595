"""The influence explorer: one's own scores as an HTML page of queries and their ranked documents,
and the same view inline in JupyterLab.

    from msif.view import explorer

    explorer.show(scores, zip(prompts, answers), texts)  # one's own scores, of any kind
    explorer.show(scores, queries, documents, tokenizer=tokenizer, model=base, w=w)  # tokens shaded

    shown = explorer.prepared(scores, zip(prompts, answers), texts)
    explorer.write("mine.html", "My models", **shown)

What the page itself is, and how it is kept safe: `msif.view.page`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from operator import index

import torch

from msif.core.data import Sequence
from msif.core.extras import need
from msif.core.influence import Scores, check, precondition, query_gradients
from msif.core.objectives import loss
from msif.core.pairs import Pair, are_pairs
from msif.view.page import Document, Entry, Query, page, wordless, write
from msif.view.parts import Part, answer_log_probabilities, extremes, query_tokens, split
from msif.view.words import prompt_and_answer, words_of

__all__ = ["inline", "page", "prepared", "show", "wordless", "write"]


def show(scores, queries, documents, *, title="Influence explorer", height=760, **options):
    """The page inline in a notebook, in a sandbox that may run its script and nothing else: an
    IPython `HTML`.

    The arguments are those of `prepared`, where the rest are explained; height in pixels."""
    return inline(page(title, **prepared(scores, queries, documents, **options)), title, height)


def inline(html, title, height):
    """A page in a notebook, as `show` has it."""
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
    numbers=None,
    sources=None,
    titles=None,
    groups=None,
    notes=None,
    labels=None,
    methods=None,
    count=10,
    opponents=5,
    trained_on=None,
    about="",
    batch_size=8,
    objective=loss,
    tuned_tokenizer=None,
):
    """The arguments of `page` and `write` but the title, {"documents", "queries", "methods",
    "about", "trained_on"}, from scores (q, n), positive = proponent.

    scores: `influence.Scores`, a (q, n) tensor or array, or several methods' as {name: either}.
    queries: q pairs (prompt, answer), or `data.Sequence`s. documents: n texts, `data.Sequence`s, or
    preferences (`pairs.Pair`). Sequences need the `tokenizer`.

    What else is given, is shown:
    model, w              documents' tokens and layers. model: `layers.Tracked`, of the documents'
                          stage; w: the preconditioned queries, as `influence.score` has them; both
                          queries and documents must be Sequences. The parts are of this score,
                          whatever the method.
    model, tuned, stages  these and the share of each of the query's own tokens; w is computed where
                          it is not given
    tuned                 the log-probability of each answer token, at the fine-tuned model
                          (`layers.Tracked`)
    numbers               one int a document, its number in its corpus, in place of 0 … n − 1:
                          rankings, parts, the keys of labels and of "documents" are these
    sources, titles       one string a document
    groups, notes         one string a query
    labels                one {document number: label} a query
    methods               {name: one line about it}
    objective             the loss that documents are scored by; of preferences, their stage's
    tuned_tokenizer       the queries' own, where the documents have another
    count, opponents      how many documents from the top and, of scores that have a sign, from the
                          bottom
    trained_on            what leaving a document out does, −score / N [nats], by the plain score
                          (that of model, else the first `influence.Scores` that have layers, else
                          the first): N, the number of documents that the loss of their stage is a
                          mean over

    Raises ValueError for sizes that do not fit together, for a number given twice, and where half
    of what a view needs is given."""
    tables, documents, queries = _tables(scores), list(documents), list(queries)
    numbers = list(range(len(documents)) if numbers is None else numbers)
    _check_sizes(
        tables,
        (queries, documents),
        {
            "numbers": (numbers, documents),
            "sources": (sources, documents),
            "titles": (titles, documents),
            "groups": (groups, queries),
            "notes": (notes, queries),
            "labels": (labels, queries),
        },
    )
    numbers = _distinct(numbers)
    highlights = _highlights(queries, documents, model, w, tuned, stages)
    if trained_on is not None and not highlights and _plain(scores) is None:
        raise ValueError(
            "trained_on without a plain score: give influence.Scores among the scores, "
            "or model and w, or leave it out"
        )
    both = [prompt_and_answer(query, tuned_tokenizer or tokenizer) for query in queries]
    lowest = {name: opponents if (values < 0).any() else 0 for name, values in tables.items()}
    tops = [
        {name: extremes(values[k], count, lowest[name]) for name, values in tables.items()}
        for k in range(len(queries))
    ]
    shown = [_once(top.values()) for top in tops]

    def document(n):
        source, title = sources[n] if sources else "", titles[n] if titles else None
        return Document(source, words_of(documents[n], tokenizer), title)

    texts = {numbers[n]: document(n) for n in sorted({n for ranked in shown for n, _ in ranked})}
    if highlights and w is None:
        w = precondition(query_gradients(tuned, queries), stages)[0]
    columns = {"group": groups, "note": notes, "labels": labels}
    found = []
    for k, query in enumerate(queries):
        if highlights:
            how = {"batch_size": batch_size, "objective": objective}
            parts = _parts(model, tuned, w, query, k, stages, documents, shown[k], **how)
        else:
            parts = _layered(_plain(scores), k, shown[k])
        parts = {n: replace(part, document=numbers[n]) for n, part in parts.items()}
        rankings = {
            name: [
                Entry(numbers[n], rank, float(tables[name][k, n]), parts.get(n))
                for n, rank in ranked
            ]
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
        "trained_on": trained_on,
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


def _distinct(numbers):
    """The numbers as ints; ValueError for one that two documents have."""
    found = [index(n) for n in numbers]
    if twice := sorted(n for n, times in Counter(found).items() if times > 1):
        raise ValueError(
            f"numbers has {twice[:3]} more than once: expected another number for every document"
        )
    return found


def _parts(model, tuned, w, query, k, stages, documents, ranked, batch_size, objective):
    """{document: Part} of query k, the k-th of w; with stages, over its own tokens too."""
    one = {name: v[k : k + 1] for name, v in w.items()}
    found = split(model, one, documents, ranked, batch_size=batch_size, objective=objective)
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


def _plain(scores):
    """The first `Scores` that have layers, else the first; None where there are none."""
    tables = scores.values() if isinstance(scores, Mapping) else [scores]
    plain = [x for x in tables if isinstance(x, Scores)]
    return next((x for x in plain if x.layers), plain[0] if plain else None)


def _layered(plain, k, ranked):
    """{document: Part} of `Scores`, by layer where they have layers; of None none."""
    if plain is None:
        return {}

    def part(n, rank):
        layers = {name: float(x[k, n]) for name, x in plain.layers.items()}
        return Part(n, rank, float(plain.values[k, n]), layers=layers or None)

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
    if stages is not None and are_pairs(documents):
        raise ValueError("stages beside pairs: a score over query positions is of sequences alone")
    for name, rows in (("queries", queries), ("documents", documents)):
        kinds = Sequence if name == "queries" else Sequence | Pair
        if not all(isinstance(x, kinds) for x in rows):
            raise ValueError(
                f"{name} are not all data.Sequence: to be taken apart they must be tokenised, "
                f"see data.encode_documents and encode_answers"
            )
    return True
