"""One query of a case for the explorer's page: every method beside the others, each document taken
apart."""

from dataclasses import replace

from msif.core.influence import precondition, query_gradients
from msif.core.store import LayerFiles
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
    "multi_stage_trajectory/normalised": (
        "multi-stage, over checkpoints, normalised",
        "as the first, each document's gradient divided by its norm first; no unit",
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
# What stands for influence: over checkpoints, where there are any.
INFLUENCE = ("multi_stage_trajectory/raw", "multi_stage/normalised")
LEGEND = (
    "Shades and bars take the plain multi-stage score apart, whatever the ranking: in nats per "
    "unit of document weight, positive = proponent."
)


def methods_of(table):
    """{label: what it is} of those of `METHODS` that a table has."""
    return dict(METHODS[name] for name in _names(table))


def _names(table):
    """Those of `METHODS` that a table has, the one that stands for influence first."""
    there = [name for name in METHODS if name in table]
    stands = [name for name in there if name in INFLUENCE]
    return [*stands[:1], *(name for name in there if name not in stands[:1])]


def taken_apart(case, query, stages):
    """What `explorer.prepared` takes documents and query apart with: {"model", "tuned", "w",
    "stages"}.

    Of a large model, whose factors are read from disk, stages is None: the query's own tokens are
    left out, for which each document's gradient would be carried through the stages, minutes a
    query."""
    tuned = case.tracked("finetuned")
    w = precondition(query_gradients(tuned, [query]), stages)[0]
    large = any(isinstance(f.factors, LayerFiles) for f in case.factors.values())
    base = case.tracked("pretrained")
    return {"model": base, "tuned": tuned, "w": w, "stages": None if large else stages}


def explored(case, table, at, *, name, group, label, note="", **options):
    """({number: Document}, Query) of the query number `at` of a case with its table
    {method/form: (q, n)}; the page's `name` of the query. label: what its proponents are called.
    options: of `explorer.prepared`."""
    query, row = case.queries[at], case.rows[at]
    scores = {METHODS[x][0]: table[x][at : at + 1] for x in _names(table)}
    made = explorer.prepared(
        scores,
        [query],
        case.bed.documents,
        tokenizer=case.bed.tokenizer,
        sources=[_source(d) for d in case.bed.corpus.documents],
        groups=[group],
        notes=[note],
        labels=[dict.fromkeys(row["proponents"], label)],
        **options,
    )
    return made["documents"], replace(made["queries"][0], id=str(name))


def trained_on(bed):
    """How many documents pre-training's loss is a mean over: all of a `testbed.Testbed`'s. None for
    a pair from elsewhere, whose documents are but a part of what it was pre-trained on."""
    return None if (bed.folder / "models.json").exists() else len(bed.documents)


def _source(document):
    """Its kind, and its title, if it has one: that may be read where its text may not."""
    title = document.get("title")
    return f"{document['kind']}: {title}" if title else document["kind"]
