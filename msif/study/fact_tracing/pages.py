"""The explorer's page of queries whose answers are known."""

from msif.study.tracing.explored import LEGEND, explored, methods_of, taken_apart, trained_on
from msif.view import explorer

OURS = ("statement", "near", "wrong", "denied", "supposed")  # kinds of documents made here


def write(
    path, case, table, title, damping, alpha, show_texts=True, each=12, count=8, batch_size=4
):
    """Write the page of a case's first `each` queries to `path`; returns the path.

    table: {method/form: (q, n)}. show_texts: False shows of the corpora that mix texts of others
    with those made here what is made here, and of other corpora no words. count: documents shown
    from the top of each method. batch_size: documents whose gradients are held together, three
    float32 numbers for each tracked weight."""
    mixed = "about" in case.rows[0]
    chosen = [n for n, row in enumerate(case.rows) if row.get("about", "invented") == "invented"]
    stages = case.chain(damping, alpha)
    options = {"count": count, "opponents": 3, "batch_size": batch_size}
    documents, queries = {}, []
    for n in chosen[:each]:
        options |= taken_apart(case, case.queries[n], stages)
        about = {"name": n, "group": case.rows[n]["relation"], "label": "states it"}
        found, query = explored(case, table, n, **about, **options)
        documents |= found
        queries.append(query if show_texts or mixed else explorer.wordless(query))
    withheld = not show_texts
    if withheld and mixed:
        kinds = [d["kind"] for d in case.bed.corpus.documents]
        withheld = {n for n in documents if kinds[n] not in OURS}
    methods = methods_of(table)
    number = trained_on(case.bed)
    return explorer.write(path, title, documents, queries, methods, LEGEND, withheld, number)
