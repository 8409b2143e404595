"""What notebook 3 found, by profile and question: each method's number, and differences of two.

A row is a profile and a question. Every number is of reports/<profile>/fact_tracing.json, at one
checkpoint of pre-training, and over several where that is recorded: scores are normalised where
they have that form.

    single-stage              question and documents at the fine-tuned model, H₂ alone
    pre-training alone        question at the fine-tuned model, documents and H₁ before fine-tuning:
                              multi-stage influence with T₂ := I
    best rival, text search   those with the highest number in their own line

A 95 % interval is over worlds, a corpus with its models, by Student's t; of one world it is over
questions alone, and says nothing of other models.
"""

import json
import math
from dataclasses import dataclass

from msif.study import intervals
from msif.study.tracing.names import named

PROFILES = ("full", "stories", "webnlg", "smollm", "bloom")  # where none is there: all that are
QUESTIONS = {
    "plain": "plain",
    "named": "same names",
    "matched": "same words",
    "causal": "what mattered",
}
# At one checkpoint, and over several.
INFLUENCE = {
    "single-stage": ("single_stage_finetuned",),
    "pre-training alone": ("pretraining_only", "pretraining_only_trajectory"),
    "multi-stage": ("multi_stage", "multi_stage_trajectory"),
}
ALONE = "pre-training alone"
SEARCHES = ("bm25", "tfidf", "embeddings")
# Rivals and their variants; the dot product of gradients has none of what influence adds to it.
RIVALS = {
    "trackstar": ("trackstar", "trackstar_pretrained", "trackstar_trajectory"),
    "trak": ("trak", "trak_pretrained", "trak_trajectory"),
    "tracincp": ("tracincp",),
    "gradient_dot": (
        "gradient_dot",
        "gradient_dot_finetuned",
        "gradient_dot_pretrained",
        "gradient_dot_trajectory",
    ),
    "hidden": ("hidden_mean", "hidden_last", "hidden_mean_pretrained", "hidden_input"),
    "single_stage": ("single_stage_pretrained", "single_stage_pretrained_trajectory"),
}
COLUMNS = (*INFLUENCE, "best rival", "text search")


@dataclass(frozen=True)
class Value:
    """A method's number on one question. low, high: its 95 % interval, nan where nothing is known.
    form: "raw" or "normalised"; worlds: pairs of a corpus and its models; questions: of all."""

    method: str
    form: str
    metric: str
    mean: float
    low: float
    high: float
    worlds: int
    questions: int

    def __str__(self):
        known = "" if math.isnan(self.low) else f" {self.interval}"
        return f"{self.mean:.2f}{known}"

    @property
    def interval(self):
        """[low, high]."""
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Cell:
    """A method at one checkpoint and over several; None where that is not recorded."""

    one: Value | None
    over: Value | None

    @property
    def best(self):
        """The higher of the two numbers."""
        return max((x.mean for x in (self.one, self.over) if x), default=-math.inf)


@dataclass(frozen=True)
class Row:
    """A line of the table. cells: {column of `COLUMNS`: Cell}."""

    profile: str
    condition: str
    cells: dict

    @property
    def size(self):
        """models (questions)."""
        cell = self.cells["multi-stage"]
        found = cell.one or cell.over
        return f"{found.worlds} ({found.questions})" if found else "–"

    def said(self, column):
        """(name or "", at one checkpoint, over several or ""), as the table says it."""
        cell = self.cells[column]
        found = cell.one or cell.over
        name = "" if column in INFLUENCE or not found else named(found.method)
        return name, str(cell.one or "–"), str(cell.over or "")


def value(records, condition, method, form=None):
    """The `Value` of a method on one question; None where there is no record of it. form: by
    default "normalised" where there is that form, else "raw"."""
    found = [r for r in records if (r["condition"], r["method"]) == (condition, method)]
    normalised = form == "normalised" if form else any(r["normalised"] for r in found)
    found = [r for r in found if r["normalised"] == normalised]
    if not found:
        return None
    metric = "auc" if "auc" in found[0] else "mrr"
    low, high = interval([r[metric] for r in found], [r[f"{metric}_se"] for r in found])
    mean = round(sum(r[metric] for r in found) / len(found), 4)  # as in the metrics
    form, asked = "normalised" if normalised else "raw", sum(r["queries"] for r in found)
    return Value(method, form, metric, mean, low, high, len(found), asked)


def interval(means, errors):
    """(low, high), within [0, 1]: of a mean over worlds, by Student's t over `means`; of one world
    from its standard error over questions, nan of one question."""
    count, mean = len(means), sum(means) / len(means)
    if count == 1:
        low, high = mean - 1.96 * errors[0], mean + 1.96 * errors[0]
    else:
        _, low, high = intervals.student(means)
    return (low, high) if math.isnan(low) else (max(0.0, low), min(1.0, high))


def _cell(records, condition, methods):
    """The `Cell` of a family: the best of its variants at one checkpoint, and over several."""
    found = [value(records, condition, method) for method in methods]
    several = [x for x in found if x and x.method.endswith(("_trajectory", "tracincp"))]
    single = [x for x in found if x and x not in several]
    best = [max(x, key=lambda v: v.mean, default=None) for x in (single, several)]
    return Cell(*best)


def _best(records, condition, families):
    cells = [_cell(records, condition, methods) for methods in families]
    return max(cells, key=lambda cell: cell.best)


def rows(folder):
    """The rows of a folder of reports; none where no profile there has traced facts."""
    there = sorted(p.parent.name for p in folder.glob("*/fact_tracing.json"))
    found = []
    for profile in [p for p in PROFILES if p in there] or there:
        records = json.loads((folder / profile / "fact_tracing.json").read_text("utf-8"))
        for condition in (c for c in QUESTIONS if any(r["condition"] == c for r in records)):
            influence = [_cell(records, condition, names) for names in INFLUENCE.values()]
            rival = _best(records, condition, RIVALS.values())
            search = _best(records, condition, [(name,) for name in SEARCHES])
            cells = dict(zip(COLUMNS, (*influence, rival, search), strict=True))
            found.append(Row(profile, condition, cells))
    return found


@dataclass(frozen=True)
class Difference:
    """How much more multi-stage influence has than another on one line: mean, low, high."""

    row: Row
    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("-", "−")


def differences(folder, found, column, which):
    """The `Difference` of multi-stage influence and another `column` on each line that has both;
    which: "one" checkpoint, or "over" several.

    Paired by world; of one world by question. A line that has no record of it is left out."""
    both = [
        (row, *(getattr(row.cells[x], which) for x in ("multi-stage", column))) for row in found
    ]
    found = [difference(folder, row, ours, other) for row, ours, other in both if ours and other]
    return [x for x in found if x]


def difference(folder, row, ours, other):
    """The `Difference` of two `Value`s on one line, see `differences`; None where it is of one
    world and not recorded question by question."""
    records = read(folder / row.profile / "fact_tracing.json")
    mine, theirs = (_by_world(records, row.condition, x) for x in (ours, other))
    if len(mine) > 1:
        return Difference(row, *intervals.student([mine[seed] - theirs[seed] for seed in mine]))
    metrics = read(folder / row.profile / "fact_tracing.metrics.json")
    older = metrics.get("paired", {}) if row.condition == "plain" else {}
    pairs = metrics.get("differences", {}).get(row.condition, older)
    gain = pairs.get(f"{ours.method} - {other.method}", {}).get(ours.form)
    return Difference(row, gain["mean"], gain["low"], gain["high"]) if gain else None


def _by_world(records, condition, value):
    """{seed: number} of a `Value`."""
    return {
        r["seed"]: r[value.metric]
        for r in records
        if (r["condition"], r["method"]) == (condition, value.method)
        and r["normalised"] == (value.form == "normalised")
    }


def read(path):
    """The JSON of a file; {} where there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
