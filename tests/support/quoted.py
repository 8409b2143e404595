"""Numbers of the reports as pages quote them: each with its error, its worlds and its file."""

import ast
import json
import math
from dataclasses import dataclass
from functools import cache

from msif.study.pipeline import traced
from support import ROOT

REPORTS = ROOT / "reports"


@dataclass(frozen=True)
class Number:
    """value: None where a table has –. spread: a 95 % interval in brackets, ± a standard error, or
    "–" where the record has neither. corpora, models: the worlds that it is a mean over; a model
    is one that gives scores. file: from reports/; key: where in the file."""

    value: float | None
    spread: str
    corpora: int
    models: int
    file: str
    key: str

    def __format__(self, spec):
        """2: as 0.98, +3: as −0.010, %: as 80 %, +%: as +5 %, nothing: as it is."""
        if spec.endswith("%"):
            share = f"{self.value:{spec.removesuffix('%')}.0%}"
            return share.replace("%", " %").replace("-", "−")
        sign, digits = ("+", spec[1:]) if spec.startswith("+") else ("", spec)
        rounded = round(self.value, int(digits)) + 0.0 if digits and not sign else self.value
        text = f"{rounded:{sign}.{digits}f}" if digits else f"{self.value:g}"
        return text.replace("-", "−")


def spread_of(error):
    """± the error, or – where it is not known."""
    known = error is not None and not math.isnan(error)
    return f"± {error:.3f}" if known else "–"


@cache
def read(profile, name):
    """The JSON of reports/<profile>/<name>.json."""
    return json.loads((REPORTS / profile / f"{name}.json").read_text("utf-8"))


def metrics(profile, name):
    """The JSON of reports/<profile>/<name>.metrics.json."""
    return read(profile, f"{name}.metrics")


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
        return Number(None, "–", 0, 0, "", "")
    return of_front(profile, condition, found)


def of_front(profile, condition, found):
    """The `Number` of a `traced.Value`."""
    known = not math.isnan(found.low)
    spread = f"[{found.low:.3f}, {found.high:.3f}]" if known else "–"
    key = f"{condition}, {found.method}, {found.form}: {found.metric}"
    worlds = found.worlds, found.worlds
    return Number(found.mean, spread, *worlds, f"{profile}/fact_tracing.json", key)


def of_difference(row, x, column):
    """(mean, low, high) of a `traced.Difference` from another column of a row, as Numbers."""
    worlds = row.cells[column].worlds
    spread = f"[{x.low:+.3f}, {x.high:+.3f}]".replace("-", "−")
    key = f"{row.condition}, multi-stage less {column}, {'over' if row.over else 'one'}: "
    return [
        Number(
            getattr(x, what),
            spread if what == "mean" else "–",
            worlds,
            worlds,
            f"{row.profile}/fact_tracing.json",
            key + what,
        )
        for what in ("mean", "low", "high")
    ]


def added(condition, other, profile="full", form="normalised"):
    """(mean, low, high) of multi-stage influence less another method at one checkpoint."""
    at = (profile, condition, False)
    (row,) = (r for r in traced.rows(REPORTS) if (r.profile, r.condition, r.over) == at)
    records = read(profile, "fact_tracing")
    both = [traced.value(records, condition, x, form) for x in ("multi_stage", other)]
    found = traced.difference(REPORTS, row, *both)
    spread = f"[{found.low:+.3f}, {found.high:+.3f}]".replace("-", "−")
    key, worlds = f"{condition}, multi_stage less {other}, {form}: ", both[0].worlds
    return [
        Number(
            getattr(found, what),
            spread if what == "mean" else "–",
            worlds,
            worlds,
            f"{profile}/fact_tracing.json",
            f"{key}mean" if what == "mean" else f"{key}interval, {what}",
        )
        for what in ("mean", "low", "high")
    ]


def subject_first(method, what="mean"):
    """Of what mattered, among the candidates that put the subject first; what: "mean", "low" or
    "high"."""
    return _of_retrainings("subject_first", method, what)


def halves(among, method, what="mean"):
    """Of what one half of the retrainings calls causal; method: a score, or "other half"."""
    return _of_retrainings("halves", among, method, what)


def _of_retrainings(*keys):
    found = metrics("full", "fact_tracing")
    for key in keys[:-1]:
        found = found[key]
    spread = "[{low:.3f}, {high:.3f}]".format(**found) if keys[-1] == "mean" else "–"
    worlds = _seeds("causal")
    return Number(found[keys[-1]], spread, worlds, worlds, *_tracing(*keys))


def filtered(profile, search="bm25", share="0.1"):
    """Recall of a question's top ten by a text filter to a share of the corpus."""
    found = metrics(profile, "fact_tracing")["filters"][search][share]
    worlds = _seeds("plain", profile)
    keys = _tracing("filters", search, share, profile=profile)
    return Number(found, "–", worlds, worlds, *keys)


def asked(condition, profile="full"):
    """How many questions, over all models."""
    found = traced.value(read(profile, "fact_tracing"), condition, "multi_stage")
    worlds, key = found.worlds, f"{condition}, multi_stage: queries"
    return Number(found.questions, "–", worlds, worlds, f"{profile}/fact_tracing.json", key)


def by_chance(condition, metric):
    found = metrics("full", "fact_tracing")[condition]["chance"][metric]
    worlds = _seeds(condition)
    return Number(found, "–", worlds, worlds, *_tracing(condition, "chance", metric))


def _seeds(condition, profile="full"):
    records = read(profile, "fact_tracing")
    return len({r["seed"] for r in records if r["condition"] == condition})


def _tracing(*keys, profile="full"):
    return f"{profile}/fact_tracing.metrics.json", ", ".join(keys)


def lead(condition, over, what="mean"):
    """Influence over checkpoints before the best rival, which must be `over`; what: "mean", "se",
    "low" or "high"."""
    found = metrics("full", "fact_tracing")["lead"][condition]
    assert found["over"] == f"{over}/raw"
    spread = "[{low:+.3f}, {high:+.3f}]".format(**found).replace("-", "−")
    spread = spread if what == "mean" else "–"
    worlds = _seeds(condition)
    return Number(found[what], spread, worlds, worlds, *_tracing("lead", condition, what))


def gain(profile, what="mean", pair=("multi_stage", "pretraining_only"), form="normalised"):
    """What a curvature adds to the plain MRR; what: "mean", "low" or "high"."""
    name = " - ".join(pair)
    found = metrics(profile, "fact_tracing")["paired"][name][form]
    spread = "[{low:+.3f}, {high:+.3f}]".format(**found).replace("-", "−")
    keys = _tracing("paired", name, form, what, profile=profile)
    worlds = _seeds("plain", profile)
    return Number(found[what], spread if what == "mean" else "–", worlds, worlds, *keys)


# ------------------------------------------------------------------------------------ notebook 12


def published(profile, *keys, what="mean"):
    """A number of the paper's protocol; keys: of its metrics, to a mean and its interval; what:
    "mean", "low" or "high"."""
    whole = found = metrics(profile, "as_published")
    for key in keys:
        found = found[key]
    spread = "[{low:+.3f}, {high:+.3f}]".format(**found).replace("-", "−")
    worlds, file = whole["models"], f"{profile}/as_published.metrics.json"
    spread, more = (spread, ()) if what == "mean" else ("–", (what,))
    return Number(found[what], spread, worlds, worlds, file, ", ".join((*keys, *more)))


# --------------------------------------------------------------------- notebooks 01, 02, 04 and 05


def answered(which, profile="full"):
    """Share of held-out facts answered: "finetuned", "pretrained" or "chance"."""
    found = [r["exact_match"] for r in read(profile, "testbed") if r["stage"] == which]
    seeds = len({r["seed"] for r in read(profile, "testbed")})
    several = seeds > 1 and found
    spread = "[{:.3f}, {:.3f}]".format(*traced.interval(found, [])) if several else "–"
    value = metrics(profile, "testbed")["exact_match"][which]
    where = f"{profile}/testbed.metrics.json", f"exact_match, {which}"
    return Number(value, spread, seeds, seeds, *where)


def curvature(*keys):
    """A number of notebook 02, which has no error of it and is of the first model."""
    found = metrics("full", "factors")
    for key in keys:
        found = found[key]
    return Number(found, "–", 1, 1, "full/factors.metrics.json", ", ".join(keys))


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
    name = f"{method}, {products} products"
    value = metrics("full", "exact")["two_stages"][problem][name][what]
    key = f"two_stages, {problem}, {name}, {what}"
    return Number(value, spread_of(error), 1, models, "full/exact.metrics.json", key)


def converged(method, products, what="spearman", damping="0.1 x mean"):
    """Notebook 05: correlation with a converged solve of one stage, ± over questions; or its
    "cost"."""
    at = {"method": method, "products": products, "damping": damping}
    (found,) = (r for r in read("full", "scalability") if all(r[k] == x for k, x in at.items()))
    key = f"{damping}, {method}, {products} products: {what}"
    error = spread_of(found.get(f"{what}_se"))
    return Number(found[what], error, 1, 1, "full/scalability.json", key)
