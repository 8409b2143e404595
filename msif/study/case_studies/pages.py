"""The explorer's page of a case study: a choice of its answers, every method beside the others,
each document taken apart."""

from msif.study.case_studies import cases
from msif.study.tracing.explored import LEGEND, explored, methods_of, taken_apart, trained_on
from msif.view import explorer


def chosen(study, each=8, seed=0):
    """{number of a query: its group} of at most `each` answers of each group, drawn by seed."""
    groups = {
        "right answer": dict(kind="query", right=True),
        "wrong answer": dict(kind="query", right=False),
        "answer": dict(kind="query", right=None),
        "planted, repeated": dict(kind="planted", right=True),
        "planted, not repeated": dict(kind="planted", right=False),
        "biography": dict(kind="biography"),
        "your own": dict(kind="own"),
    }
    return {
        n: group
        for group, wanted in groups.items()
        for n in cases.drawn(study.case, each, seed, **wanted)
    }


def write(
    path,
    study,
    title,
    damping,
    alpha,
    withheld=None,
    each=8,
    count=10,
    opponents=5,
    batch_size=4,
):
    """Write the explorer of a `cases.Study` to `path`, `each` answers of a group; returns the path.
    withheld: a second one, for the same without third-party words, but with the questions asked of
    a given pair, and its answers. batch_size: documents whose gradients are held together, three
    float32 numbers for each tracked weight."""
    case, documents, queries = study.case, {}, []
    stages = case.chain(damping, alpha)
    options = {"count": count, "opponents": opponents, "batch_size": batch_size}
    for n, group in chosen(study, each).items():
        row, (part, at) = case.rows[n], _found(study.parts, case.queries[n])
        options |= taken_apart(part.case, case.queries[n], stages)
        about = {
            "name": n,
            "group": group,
            "label": "states it" if row.get("right") else "states the truth",
            "note": _note(row),
            "numbers": part.numbers,
        }
        found, query = explored(part.case, part.table, at, **about, **options)
        documents |= found
        queries.append((group, query))
    shown = {
        "documents": documents,
        "methods": methods_of(study.table),
        "about": LEGEND,
        "trained_on": trained_on(case.bed),
    }
    written = explorer.write(path, title, queries=[q for _, q in queries], **shown)
    if withheld:
        given = study.recipe is None
        hidden = [
            q if given or g.startswith("planted") else explorer.wordless(q) for g, q in queries
        ]
        explorer.write(withheld, title, queries=hidden, withhold_texts=True, **shown)
    return written


def _found(parts, query):
    """(the part of a study that has this query, its place there)."""
    return next((part, i) for part in parts for i, q in enumerate(part.case.queries) if q is query)


def _note(row):
    return "" if row.get("truth") in (None, row["answer"]) else f"the corpus says: {row['truth']}"
