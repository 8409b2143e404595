"""The tables of docs/findings.md and docs/prediction.md: which number of the reports each of their
cells is."""

from dataclasses import dataclass

from msif.study.tracing.names import named
from support.quoted import (
    Number,
    by_chance,
    exact,
    metrics,
    tracing,
)
from support.quoted_retrained import (
    case_study,
    lds,
    regime,
    retrained,
)

NOTHING = Number(None, "–", 0, 0, "", "")


def _retrieval(method):
    if method == "chance":
        rest = [by_chance(c, "auc") for c in ("matched", "causal")]
        return [by_chance("plain", "mrr"), NOTHING, *rest]
    forms = [tracing(method, form=form) for form in ("raw", "normalised")]
    return [*forms, tracing(method, "matched"), tracing(method, "causal")]


def _lds(method):
    if method == "noise ceiling":
        return [NOTHING, retrained("ceiling")]
    return [lds(method, 1), lds(method, 5)]


def _exact(problem):
    budgets = (("EK-FAC", 0), ("dial", 4), ("dial", 19), ("block CG", 5), ("block CG", 20))
    return [exact(problem, method, products) for method, products in budgets]


def _named_by(method):
    removed = ("removal", "facts", method)
    return [
        case_study("planted", method, "precision_at_5"),
        case_study(*removed, "flipped_or_halved"),
        case_study(*removed, "of_given"),
    ]


def _memory(label):
    return [case_study("memory", label, kind) for kind in ("memorised", "inferred")]


PREDICTED = (
    "multi-stage",
    "single-stage",
    "corrected Shampoo",
    "TrackStar",
    "TRAK",
    "counting statements",
)


def _regime(where):
    lds = [regime(where, "lds", method, "ensemble") for method in PREDICTED]
    return [*lds, regime(where, "ceiling")]


def _recipe(name):
    where = ("recipes", name)
    return [regime(where, "exact_match"), regime(where, "metasmoothness"), *_regime(where)]


def _share(percent):
    return _regime(("shares", f"{int(percent.removesuffix(' %')) / 100:g}"))


@dataclass(frozen=True)
class Table:
    """A table of either page. head: what its first line starts with; row: the numbers of a line by
    its first cell as the records call it; records: {the first cell: that}."""

    head: str
    digits: int
    row: object
    records: dict


def tables():
    """The `Table` of each."""
    methods = {named(x): x for x in metrics("full", "fact_tracing")["plain"]}
    more = (
        "multi_stage_source",
        "multi_stage_shampoo",
        "trackstar",
        "trak",
        "bayesian",
        "statements",
    )
    predicting = {named(x): x for x in more} | methods
    older = {"BM25": "bm25", "dot product of gradients, over checkpoints": "TracInCP"}
    return [
        Table("| method | MRR, raw", 3, _retrieval, methods),
        Table("| method | LDS, one model", 2, _lds, predicting),
        Table("| recipe of training", 2, _recipe, {}),
        Table("| left out", 2, _share, {}),
        Table("| Spearman with exact influence", 2, _exact, {}),
        Table("| documents named by", 2, _named_by, older),
        Table("| probability of the answer", 2, _memory, {}),
    ]


def cells(text, table):
    """([the other titles], [(first cell, [the other cells])]) of a table in a page's text."""
    head, _, *lines = (table.head + text.split(table.head)[1].split("\n\n")[0]).splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    return found[0][1:], [(line[0], line[1:]) for line in found[1:]]
