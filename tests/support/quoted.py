"""Numbers of the reports as pages quote them: each with its error, its worlds and its file."""

import ast
import json
import math
from dataclasses import dataclass, replace
from functools import cache

from msif.study.pipeline import traced
from support import ROOT

REPORTS = ROOT / "reports"
LOW, HIGH, ERROR = "lower end of its interval", "upper end of its interval", "its standard error"
PARTS = {"low": LOW, "high": HIGH, "se": ERROR, "error": ERROR}  # as records call them
NEGATED = "−1 × "
# What a record calls the error of a number; others' stands beside them as <name>_error.
ERRORS = {"value": "error", "precision_at_5": "se", "flipped_or_halved": "se"}


@dataclass(frozen=True)
class Number:
    """value: as in the record, shares of 1; None where a table has –. spread: the (low, high) of
    a 95 % interval, a standard error, or None where the record has neither. corpora, models: the
    worlds that it is a mean over; a model is one that gives scores. file: from reports/; key: where
    in the file. part: which end or error of what `key` names, "" where it is that itself."""

    value: float | None
    spread: tuple | float | None
    corpora: int
    models: int
    file: str
    key: str
    part: str = ""

    def __format__(self, spec):
        """2: as 0.98, +3: as −0.010, %: as 80 %, +%: as +5 %, +p: as +5, nothing: as it is."""
        if spec.endswith(("%", "p")):
            share = f"{self.value:{spec[:-1]}.0%}".replace("-", "−")
            return share.replace("%", " %" if spec.endswith("%") else "")
        sign, digits = ("+", spec[1:]) if spec.startswith("+") else ("", spec)
        rounded = round(self.value, int(digits)) + 0.0 if digits and not sign else self.value
        text = f"{rounded:{sign}.{digits}f}" if digits else f"{self.value:g}"
        return text.replace("-", "−")

    def __neg__(self):
        """Negated: its interval is turned with it, and of a lower end becomes the upper one."""
        if self.part == ERROR:
            return replace(self, key=NEGATED + self.key)
        spread, part = self.spread, {LOW: HIGH, HIGH: LOW}.get(self.part, self.part)
        if isinstance(spread, tuple):
            spread = (-spread[1], -spread[0])
        return replace(self, value=-self.value, spread=spread, key=NEGATED + self.key, part=part)

    @property
    def error(self):
        """Its spread in words: [0.925, 0.971], ± 0.014 or –."""
        if isinstance(self.spread, tuple):
            low, high = (f"{round(x, 3) + 0.0:.3f}".replace("-", "−") for x in self.spread)
            return f"[{low}, {high}]"
        known = self.spread is not None and not math.isnan(self.spread)
        return f"± {self.spread:.3f}" if known else "–"


NOTHING = Number(None, None, 0, 0, "", "")


def with_ends(mean, low, high, corpora, models, file, key):
    """A mean and the ends of its interval, as Numbers."""
    whole = Number(mean, (low, high), corpora, models, file, key)
    ends = ((low, LOW), (high, HIGH))
    return [whole, *(replace(whole, value=x, spread=None, part=part) for x, part in ends)]


@cache
def read(profile, name):
    """The JSON of reports/<profile>/<name>.json."""
    return json.loads((REPORTS / profile / f"{name}.json").read_text("utf-8"))


def metrics(profile, name):
    """The JSON of reports/<profile>/<name>.metrics.json."""
    return read(profile, f"{name}.metrics")


def recorded(profile, name, keys, corpora, models):
    """The `Number` at these keys of reports/<profile>/<name>.metrics.json, with the error that the
    record has of it; keys: to it, to the record of a value or a mean, or to an end or error."""
    beside = metrics(profile, name)
    for key in keys[:-1]:
        beside = beside[key]
    last, found = keys[-1], beside[keys[-1]]
    if isinstance(found, dict):
        inside = "mean" if "mean" in found else "value"
        return recorded(profile, name, (*keys, inside), corpora, models)
    part = PARTS.get(last.split("_")[-1], "")
    spread = None if part else _beside(beside, last)
    of = (
        keys[:-1]
        if last in ("mean", "value", *PARTS)
        else (*keys[:-1], last.removesuffix("_error"))
    )
    file, key = f"{profile}/{name}.metrics.json", ", ".join(of)
    return Number(found, spread, corpora, models, file, key, part)


def _beside(record, name):
    """The spread of a number of a record, which stands beside it; None without."""
    if name == "mean":
        return record["low"], record["high"]
    return record.get(ERRORS.get(name, f"{name}_error"))


@cache
def parameters(profile, notebook):
    """{name: value} that a report was run with, by its own record: its injected cell."""
    executed = json.loads((REPORTS / profile / f"{notebook}.ipynb").read_text("utf-8"))
    (cell,) = (
        x for x in executed["cells"] if "injected-parameters" in x["metadata"].get("tags", [])
    )
    lines = ast.parse("".join(cell["source"])).body
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}


# ------------------------------------------------------------------------------------ notebook 03


def tracing(method, condition="plain", profile="full", form=None):
    """MRR or AUC of a method; form: by default normalised where there is that form."""
    found = traced.value(read(profile, "fact_tracing"), condition, method, form)
    if found is None:
        return NOTHING
    return of_front(profile, condition, found)


def of_front(profile, condition, found):
    """The `Number` of a `traced.Value`."""
    if condition == traced.PUBLISHED:
        keys = "methods", found.method, found.metric
        return recorded(profile, "as_published", keys, found.worlds, found.worlds)
    spread = None if math.isnan(found.low) else (found.low, found.high)
    key = f"{condition}, {found.method}, {found.form}: {found.metric}"
    worlds = found.worlds, found.worlds
    return Number(found.mean, spread, *worlds, f"{profile}/fact_tracing.json", key)


def of_difference(row, x, column):
    """(mean, low, high) of a `traced.Difference` from another column of a row, as Numbers."""
    if row.condition == traced.PUBLISHED:
        ends = "mean", "low", "high"
        return [published(row.profile, "gains", "second stage", what=end) for end in ends]
    key = f"{row.condition}, multi-stage less {column}, {'over' if row.over else 'one'}"
    return _of_difference(x, row.cells[column].worlds, key)


def added(condition, other, profile="full", form="normalised", end=""):
    """(mean, low, high) of multi-stage influence less another method; end: "_trajectory" over
    checkpoints. None where nobody recorded it."""
    records = read(profile, "fact_tracing")
    names = [f"{x}{end}" for x in ("multi_stage", other)]
    both = [traced.value(records, condition, x, form) for x in names]
    row = traced.Row(profile, condition, bool(end), {})
    found = traced.difference(REPORTS, row, *both) if all(both) else None
    key = f"{condition}, {' less '.join(names)}, {form}"
    return _of_difference(found, both[0].worlds, key) if found else None


def _of_difference(found, worlds, key):
    name = "fact_tracing" if worlds > 1 else "fact_tracing.metrics"
    file = f"{found.row.profile}/{name}.json"
    return with_ends(found.mean, found.low, found.high, worlds, worlds, file, key)


def subject_first(method, what="mean"):
    """Of what mattered, among the candidates that put the subject first; what: "mean", "low" or
    "high"."""
    return _of_retrainings("subject_first", method, what)


def halves(among, method, what="mean"):
    """Of what one half of the retrainings calls causal; method: a score, or "other half"."""
    return _of_retrainings("halves", among, method, what)


def _of_retrainings(*keys):
    return _tracing("causal", keys)


def filtered(profile, search="bm25", share="0.1"):
    """Recall of a question's top ten by a text filter to a share of the corpus."""
    return _tracing("plain", ("filters", search, share), profile)


def asked(condition, profile="full"):
    """How many questions, over all models."""
    found = traced.value(read(profile, "fact_tracing"), condition, "multi_stage")
    worlds, key = found.worlds, f"{condition}, multi_stage: queries"
    return Number(found.questions, None, worlds, worlds, f"{profile}/fact_tracing.json", key)


def by_chance(condition, metric):
    return _tracing(condition, (condition, "chance", metric))


def _tracing(condition, keys, profile="full"):
    """A number of notebook 03's metrics, of the worlds that a question has."""
    records = read(profile, "fact_tracing")
    worlds = len({r["seed"] for r in records if r["condition"] == condition})
    return recorded(profile, "fact_tracing", keys, worlds, worlds)


def lead(condition, over, what="mean"):
    """Influence over checkpoints before the best rival, which must be `over`; what: "mean", "se",
    "low" or "high"."""
    assert metrics("full", "fact_tracing")["lead"][condition]["over"] == f"{over}/raw"
    return _tracing(condition, ("lead", condition, what))


def gain(profile, what="mean", pair=("multi_stage", "pretraining_only"), form="normalised"):
    """What a curvature adds to the plain MRR; what: "mean", "low" or "high"."""
    return _tracing("plain", ("paired", " - ".join(pair), form, what), profile)


# ------------------------------------------------------------------------------------ notebook 12


def published(profile, *keys, what="mean"):
    """A number of the paper's protocol; keys: of its metrics, to a mean and its interval; what:
    "mean", "low" or "high"."""
    worlds = metrics(profile, "as_published")["models"]
    return recorded(profile, "as_published", (*keys, what), worlds, worlds)


# --------------------------------------------------------------------- notebooks 01, 02, 04 and 05


def answered(which, profile="full"):
    """Share of held-out facts answered: "finetuned", "pretrained" or "chance"."""
    records = read(profile, "testbed")
    found = [r for r in records if r["stage"] == which]
    seeds = len({r["seed"] for r in records})
    number = recorded(profile, "testbed", ("exact_match", which), seeds, seeds)
    shares, errors = ([r[x] for r in found] for x in ("exact_match", "exact_match_se"))
    return replace(number, spread=traced.interval(shares, errors)) if found else number


def curvature(*keys):
    """A number of notebook 02, which has no error of it and is of the first model."""
    return recorded("full", "factors", keys, 1, 1)


def exact(problem, method, products=0, what="spearman"):
    """Correlation with exact two-stage influence: mean over models, ± over them; of one model ±
    over its questions."""
    at = {"problem": problem, "method": method, "products": products, "stages": 2}
    at |= {"damping": metrics("full", "exact")["damping"]}
    found = [r for r in read("full", "exact") if all(r[k] == x for k, x in at.items())]
    models, values = len(found), [r[what] for r in found]
    if models > 1:
        mean = sum(values) / models
        error = math.sqrt(sum((x - mean) ** 2 for x in values) / (models - 1) / models)
    else:
        error = found[0][f"{what}_se"]
    keys = ("two_stages", problem, f"{method}, {products} products", what)
    return replace(recorded("full", "exact", keys, 1, models), spread=error)


def converged(method, products, what="spearman", damping="0.1 x mean"):
    """Notebook 05: correlation with a converged solve of one stage, ± over questions; or its
    "cost"."""
    at = {"method": method, "products": products, "damping": damping}
    (found,) = (r for r in read("full", "scalability") if all(r[k] == x for k, x in at.items()))
    key = f"{damping}, {method}, {products} products: {what}"
    return Number(found[what], found.get(f"{what}_se"), 1, 1, "full/scalability.json", key)
