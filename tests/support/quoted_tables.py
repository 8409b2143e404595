"""The tables of docs/findings.md and docs/prediction.md: which number of the reports each of their
cells is."""

from dataclasses import dataclass
from itertools import takewhile

from msif.study.pipeline.traced import QUESTIONS
from msif.study.tracing.names import named
from support.quoted import (
    NOTHING,
    added,
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


def _second_stage(line):
    """What fine-tuning's curvature adds; line: "full, same words"."""
    profile, question = line.split(", ")
    (condition,) = (x for x, asked in QUESTIONS.items() if asked == question)
    found = [
        added(condition, "pretraining_only", profile, form, end)
        for end in ("", "_trajectory")
        for form in ("raw", "normalised")
    ]
    return [x[0] if x else NOTHING for x in found]


@dataclass(frozen=True)
class Table:
    """A table of either page. head: what its first line starts with; form: a cell, from its Number;
    row: the numbers of a line by its first cell as the records call it; records: {the first cell:
    that}; about: what stands before its first cells on the page of claims."""

    head: str
    form: str
    row: object
    records: dict
    about: str = ""

    def cell(self, number):
        """A Number as the table has it."""
        return "–" if number.value is None else self.form.format(number)


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
    two, three = "{0.value:.2f}", "{0.value:.3f}"
    change = "{0.value:+.3f} [{0.spread[0]:+.3f}, {0.spread[1]:+.3f}]"
    return [
        Table("| method | MRR, raw", three, _retrieval, methods),
        Table("| what it adds", change, _second_stage, {}, "second stage, "),
        Table("| method | LDS, one model", two, _lds, predicting),
        Table("| recipe of training", two, _recipe, {}),
        Table("| left out", two, _share, {}),
        Table("| Spearman with exact influence", two, _exact, {}),
        Table("| documents named by", two, _named_by, older),
        Table("| probability of the answer", two, _memory, {}),
    ]


def cells(text, table):
    """([the other titles], [(first cell, [the other cells])]) of a table in a page's text."""
    below = (table.head + text.split(table.head)[1]).splitlines()
    head, _, *lines = takewhile(lambda line: line.startswith("|"), below)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    return found[0][1:], [(line[0], line[1:]) for line in found[1:]]
