"""What notebook 3 found, by profile and question: each method's number, and differences of two.

A row is a profile and a question, at one checkpoint of pre-training or over several. Every number
is of reports/<profile>/fact_tracing.json: scores are normalised where they have that form.

    single-stage              question and documents at the fine-tuned model, H₂ alone; over
                              checkpoints: of fine-tuning
    pre-training alone        question at the fine-tuned model, documents and H₁ before fine-tuning:
                              multi-stage influence with T₂ := I
    best rival, text search   those with the highest number in their own line

The line *as published* is of notebook 12 (`published`): the paper's formula and candidates, plain
scores, which say nothing of the other lines' settings.

A 95 % interval is over worlds, a corpus with its models, by Student's t; of one world it is over
questions alone, and says nothing of other models.
"""

import json
import math
from dataclasses import dataclass

from msif.study import intervals
from msif.study.tracing.names import named

# Where none of them is there: all that are.
PROFILES = ("full", "stories", "webnlg", "smollm", "smollm_h100", "bloom")
QUESTIONS = {
    "plain": "plain",
    "named": "same names",
    "matched": "same words",
    "causal": "what mattered",
}
PUBLISHED = "published"  # the question of plain by the paper's protocol
# Of a column the methods, of which that counts that has the highest number in its line. Methods
# that end in one of `SEVERAL` are over checkpoints.
SEVERAL = ("_trajectory", "tracincp")
INFLUENCE = {
    "single-stage": ("single_stage_finetuned", "single_stage_finetuned_trajectory"),
    "pre-training alone": ("pretraining_only", "pretraining_only_trajectory"),
    "multi-stage": ("multi_stage", "multi_stage_trajectory"),
}
ALONE = "pre-training alone"
RIVALS = (
    *("trackstar", "trackstar_pretrained", "trackstar_trajectory"),
    *("trak", "trak_pretrained", "trak_trajectory", "tracincp"),
    *("gradient_dot", "gradient_dot_finetuned"),
    *("gradient_dot_pretrained", "gradient_dot_trajectory"),
    *("hidden_mean", "hidden_last", "hidden_mean_pretrained", "hidden_input"),
    *("single_stage_pretrained", "single_stage_pretrained_trajectory"),
)
SEARCHES = ("bm25", "tfidf", "embeddings")
# The same columns of as_published.metrics.json.
AS_PUBLISHED = {
    "single-stage": ("single-stage, absolute",),
    "pre-training alone": (),
    "multi-stage": ("multi-stage, absolute",),
    "best rival": ("dot product of gradients", "hidden states, mean, of both models"),
    "text search": ("BM25", "sentence embeddings"),
}
METHODS = INFLUENCE | {"best rival": RIVALS, "text search": SEARCHES}
COLUMNS = tuple(METHODS)


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
class Row:
    """A line of the table. over: several checkpoints, not one; cells: {column of `COLUMNS`:
    `Value`, or None where there is none}."""

    profile: str
    condition: str
    over: bool
    cells: dict

    @property
    def question(self):
        """What is asked, and how."""
        if self.condition == PUBLISHED:
            return "as published"
        return QUESTIONS[self.condition] + ", over checkpoints" * self.over

    @property
    def size(self):
        """models (questions)."""
        found = self.cells["multi-stage"]
        return f"{found.worlds} ({found.questions})" if found else "–"

    def said(self, column):
        """(name or "", number and interval), as the table says it."""
        found = self.cells[column]
        name = "" if column in INFLUENCE or not found else named(found.method)
        return name, str(found or "–")


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


def _best(records, condition, methods, over):
    """The highest `Value` of those methods that are over checkpoints, or that are not."""
    found = [value(records, condition, x) for x in methods if x.endswith(SEVERAL) == over]
    return max((x for x in found if x), key=lambda x: x.mean, default=None)


def rows(folder):
    """The rows of a folder of reports; none where no profile there has traced facts. Over
    checkpoints, where multi-stage influence is recorded so."""
    there = sorted(p.parent.name for p in folder.glob("*/fact_tracing.json"))
    found = []
    for profile in [p for p in PROFILES if p in there] or there:
        records = json.loads((folder / profile / "fact_tracing.json").read_text("utf-8"))
        for condition in (c for c in QUESTIONS if any(r["condition"] == c for r in records)):
            for over in (False, True):
                of = {c: _best(records, condition, x, over) for c, x in METHODS.items()}
                if of["multi-stage"] or not over:
                    found.append(Row(profile, condition, over, of))
        found += published(folder, profile)
    return found


def published(folder, profile):
    """[the `Row` of the paper's protocol]; none where notebook 12 has not run."""
    found = read(folder / profile / "as_published.metrics.json")
    if not found:
        return []

    def value(name):
        mean, low, high = found["methods"][name]["mrr"].values()
        ends = max(0.0, low), min(1.0, high)
        return Value(name, "raw", "mrr", mean, *ends, found["models"], found["questions"])

    cells = {
        column: max(map(value, names), key=lambda x: x.mean, default=None)
        for column, names in AS_PUBLISHED.items()
    }
    return [Row(profile, PUBLISHED, False, cells)]


@dataclass(frozen=True)
class Difference:
    """How much more multi-stage influence has than another on one line: mean, low, high."""

    row: Row
    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("-", "−")


def differences(folder, found, column):
    """[(row, the `Difference` of multi-stage influence and another `column` there)] of those rows
    that have both; None where nobody recorded it.

    Paired by world; of one world by question."""
    both = [(row, row.cells["multi-stage"], row.cells[column]) for row in found]
    return [(row, difference(folder, row, *x)) for row, *x in both if all(x)]


def difference(folder, row, ours, other):
    """The `Difference` of two `Value`s on one line, see `differences`; None where it is of one
    world and not recorded question by question."""
    if row.condition == PUBLISHED:
        gains = read(folder / row.profile / "as_published.metrics.json")["gains"]
        return Difference(row, *gains["second stage"].values())
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
