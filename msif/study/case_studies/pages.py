"""The explorer's page of a case study: a choice of its answers, every method beside the others,
each document taken apart."""

from dataclasses import replace

from msif.study.case_studies import cases
from msif.view import explorer

METHODS = {
    "multi_stage_trajectory/raw": (
        "multi-stage, over checkpoints",
        "summed over checkpoints, each divided by its standard deviation; no unit",
    ),
    "single_stage_finetuned/normalised": (
        "single-stage, normalised",
        "ordinary influence at the fine-tuned model, divided by the document's gradient norm",
    ),
    "multi_stage/raw": (
        "multi-stage",
        "at the end of pre-training [nats per unit of document weight]",
    ),
    "multi_stage/normalised": (
        "multi-stage, normalised",
        "the same, divided by the document's gradient norm",
    ),
    "bm25/raw": ("BM25", "text search for question and answer; no unit"),
}
LEGEND = (
    "Shades and bars take the plain multi-stage score apart, whatever the ranking: in nats per "
    "unit of document weight, positive = proponent."
)


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
    withheld: a second one, for the same without third-party words. batch_size: documents whose
    gradients are held together, three float32 numbers for each tracked weight."""
    methods = {
        label: (name, text) for name, (label, text) in METHODS.items() if name in study.table
    }
    case, documents, queries = study.case, {}, []
    base, tuned = case.tracked("pretrained"), case.tracked("finetuned")
    stages, rows = case.chain(damping, alpha), case.rows
    for n, group in chosen(study, each).items():
        query, row = case.queries[n], rows[n]
        part, at = _found(study.parts, query)
        states = "states it" if row.get("right") else "states the truth"
        made = explorer.prepared(
            {label: part.table[name][at : at + 1] for label, (name, _) in methods.items()},
            [query],
            part.case.bed.documents,
            tokenizer=case.bed.tokenizer,
            model=base,
            tuned=tuned,
            stages=stages,
            numbers=part.numbers,
            sources=[d["kind"] for d in part.case.bed.corpus.documents],
            groups=[group],
            notes=[_note(row)],
            labels=[dict.fromkeys(row["proponents"], states)],
            count=count,
            opponents=opponents,
            batch_size=batch_size,
        )
        documents |= made["documents"]
        queries.append((group, replace(made["queries"][0], id=str(n))))
    texts = {label: text for label, (_, text) in methods.items()}
    written = explorer.write(path, title, documents, [q for _, q in queries], texts, LEGEND)
    if withheld:
        hidden = [q if g.startswith("planted") else _wordless(q) for g, q in queries]
        explorer.write(withheld, title, documents, hidden, texts, LEGEND, withhold_texts=True)
    return written


def _found(parts, query):
    """(the part of a study that has this query, its place there)."""
    return next((part, i) for part in parts for i, q in enumerate(part.case.queries) if q is query)


def _note(row):
    return "" if row.get("truth") in (None, row["answer"]) else f"the corpus says: {row['truth']}"


def _wordless(query):
    return replace(query, prompt_words=[], answer_words=[], logprobs=None, note="")
