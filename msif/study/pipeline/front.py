"""The front table: influence of one stage and of two, the best rival and text search, by profile.

    python -m msif.study.pipeline.front            print it, as README has it
    python -m msif.study.pipeline.front --write    put it into README, between its two marks

Every number is of reports/<profile>/fact_tracing.json, at one checkpoint of pre-training, and in
brackets over several where that is recorded: scores are normalised where they have that form. The
best rival and the best text search are those with the highest number in their own line. A 95 %
interval is over worlds, a corpus with its models, by Student's t; of one world it is over questions
alone, and says nothing of other models.
"""

import argparse
import json
import math
import re
import textwrap
from dataclasses import dataclass

from msif.core.extras import need
from msif.core.files import write_text
from msif.study.paths import root
from msif.study.tracing.names import named

student = need("scipy.stats").t
PROFILES = ("full", "stories", "webnlg", "smollm", "bloom")  # where none is there: all that are
QUESTIONS = {
    "plain": "plain",
    "named": "same names",
    "matched": "same words",
    "causal": "what mattered",
}
# At one checkpoint, and over several: of one stage those of pre-training, as fine-tuning has none.
INFLUENCE = (
    ("single_stage_finetuned", "single_stage_pretrained_trajectory"),
    ("multi_stage", "multi_stage_trajectory"),
)
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
}
COLUMNS = ("single-stage", "multi-stage", "best rival", "text search")
HEAD = ("profile, question", "models (questions)", *COLUMNS)
MARKS = "<!-- front table -->", "<!-- end of the front table -->"


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
        return max(x.mean for x in (self.one, self.over) if x)


@dataclass(frozen=True)
class Row:
    """A line of the table. cells: {column of `COLUMNS`: Cell}."""

    profile: str
    condition: str
    cells: dict

    @property
    def size(self):
        """models (questions)."""
        one = self.cells["multi-stage"].one
        return f"{one.worlds} ({one.questions})"

    def said(self, column):
        """(name or "", at one checkpoint, over several or ""), as the table says it."""
        cell = self.cells[column]
        name = "" if column.endswith("-stage") else named((cell.one or cell.over).method)
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
        half = 1.96 * errors[0]
    else:
        spread = math.sqrt(sum((x - mean) ** 2 for x in means) / (count - 1) / count)
        half = float(student.ppf(0.975, count - 1)) * spread
    low, high = mean - half, mean + half
    return (low, high) if math.isnan(half) else (max(0.0, low), min(1.0, high))


def _cell(records, condition, methods):
    """The `Cell` of a family: the best of its variants at one checkpoint, and over several."""
    found = [value(records, condition, method) for method in methods]
    several = [x for x in found if x and x.method.endswith(("_trajectory", "tracincp"))]
    single = [x for x in found if x and x not in several]
    best = [max(x, key=lambda v: v.mean, default=None) for x in (single, several)]
    return Cell(*best) if any(best) else None


def _best(records, condition, families):
    cells = [_cell(records, condition, methods) for methods in families]
    return max(filter(None, cells), key=lambda cell: cell.best)


def rows(folder):
    """The rows of a folder of reports; none where no profile there has traced facts."""
    there = sorted(p.parent.name for p in folder.glob("*/fact_tracing.json"))
    found = []
    for profile in [p for p in PROFILES if p in there] or there:
        records = json.loads((folder / profile / "fact_tracing.json").read_text("utf-8"))
        for condition in (c for c in QUESTIONS if any(r["condition"] == c for r in records)):
            influence = [_cell(records, condition, names) for names in INFLUENCE]
            rival = _best(records, condition, RIVALS.values())
            search = _best(records, condition, [(name,) for name in SEARCHES])
            cells = dict(zip(COLUMNS, (*influence, rival, search), strict=True))
            found.append(Row(profile, condition, cells))
    return found


def second_stage(folder, found=None):
    """One sentence: where the second stage does not help, as the records have it."""
    found = rows(folder) if found is None else found
    gains = {p: _gain(folder, p) for p in dict.fromkeys(row.profile for row in found)}
    unsure = [f"{p} ({_said(gain)})" for p, gain in gains.items() if gain and gain["low"] <= 0]
    behind, behind_over = (_behind(found, which) for which in ("one", "over"))
    parts = []
    if unsure:
        parts.append(
            f"over checkpoints, fine-tuning's curvature adds nothing sure to the plain MRR on "
            f"{_listed(unsure)}"
        )
    if behind:
        parts.append(f"multi-stage is not above single-stage on {_listed(behind)}")
    if behind_over:
        what = "it is not" if behind else "multi-stage is not above single-stage"
        parts.append(f"over checkpoints {what} on {_listed(behind_over)}")
    return f"Where the second stage does not help: {'; '.join(parts) or 'nowhere in this table'}."


def _behind(found, which):
    """Where multi-stage is not above single-stage; which: "one" checkpoint, or "over" several."""
    pairs = [(row, [getattr(row.cells[x], which) for x in COLUMNS[:2]]) for row in found]
    return [
        f"{row.profile}, {QUESTIONS[row.condition]} ({single.mean:.2f} and {multi.mean:.2f})"
        for row, (single, multi) in pairs
        if single and multi and single.mean >= multi.mean
    ]


def _gain(folder, profile):
    """What fine-tuning's curvature adds over checkpoints, normalised; {} where nobody asked."""
    paired = _read(folder / profile / "fact_tracing.metrics.json").get("paired", {})
    both = paired.get("multi_stage_trajectory - pretraining_only_trajectory", {})
    return both.get("normalised", {})


def _said(gain):
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gain).replace("-", "−")


def _listed(words):
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def trust(folder, found=None):
    """Should one trust it on a model of one's own? What the records of the first profile that has
    them say; "" without."""
    found = rows(folder) if found is None else found
    at = next((row for row in found if row.condition == "plain"), None)
    exact, lds = (
        _read(folder / at.profile / f"{x}.metrics.json") if at else {}
        for x in ("exact", "retraining")
    )
    bed = exact.get("two_stages", {}).get("test-bed")
    if not bed or not lds:
        return ""
    ekfac, dot = (bed[f"{x}, 0 products"] for x in ("EK-FAC", "gradient dot"))
    return (
        "Should I trust it on my model? As a list of documents to read first, where text search "
        "does not do as well; not for the order of all documents, nor for sizes. On "
        f"{at.profile} the documents that state the fact have an MRR of "
        f"{at.cells['multi-stage'].one.mean:.2f}; over all documents the order has a Spearman of "
        f"{ekfac['spearman']:.2f} with that of exact influence, on notebook 04's test-bed (dot "
        f"product of gradients {dot['spearman']:.2f}). {_of_the_large(ekfac, dot)} How many of "
        "the first ten are the same is not recorded. With what retraining does, scores of one "
        f"model have a rank correlation of {lds['lds']['multi_stage_normalised_1_models']:.2f}, "
        f"BM25 {lds['lds']['bm25_raw_1_models']:.2f}; noise allows {lds['ceiling']:.2f}. All of "
        "it is of small models."
    )


def _of_the_large(ekfac, dot):
    """Do the few large scores, which decide Pearson's correlation, agree better than the rest?"""
    said = f"{ekfac['pearson']:.2f} (dot product {dot['pearson']:.2f})"
    if ekfac["pearson"] > ekfac["spearman"] + 0.1:
        return (
            "Both are so, as Spearman counts every pair of documents that have nothing to do with "
            f"the answer: Pearson, which the few large scores decide, is {said}."
        )
    return f"Of the few large scores that is no better: Pearson, which they decide, is {said}."


def _read(path):
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def markdown(folder):
    """The table, its sentence and the answer about trust, as README has them."""
    found = rows(folder)
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in found:
        cells = [_joined(*row.said(column)) for column in COLUMNS]
        lines.append([f"`{row.profile}`, {QUESTIONS[row.condition]}", row.size, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_wrapped, filter(None, answers(folder, found)))])


def answers(folder, found):
    """What stands below the table: (what it is about, the rest) of each; [] without a table."""
    if not found:
        return []
    both = second_stage(folder, found), trust(folder, found)
    return [re.fullmatch(r"(.+?[:?]) (.+)", text).groups() for text in both if text]


def _wrapped(answer):
    return textwrap.fill("**{}** {}".format(*answer), 108, break_on_hyphens=False)


def _joined(name, one, over):
    return " ".join(filter(None, (name, one, f"({over})" if over else "")))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into README")
    made = markdown(root() / "reports")
    if not parser.parse_args().write:
        print(made)
        return
    readme, (start, end) = root() / "README.md", MARKS
    inside = re.compile(f"(?<={re.escape(start)}\n).*?(?={re.escape(end)})", re.S)
    write_text(readme, inside.sub(lambda _: f"{made}\n", readme.read_text("utf-8"), count=1))


if __name__ == "__main__":
    main()
