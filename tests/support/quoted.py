"""Numbers of the reports as pages quote them: each with its error, its worlds and its file."""

import ast
import json
import math
from dataclasses import dataclass, replace
from functools import cache

from msif.study import intervals
from msif.study.pipeline import traced
from msif.study.pipeline.retrained import RIVALS_OF_RETRAINING
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


def _spread(error):
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
    spread = "[{:.3f}, {:.3f}]".format(*traced.interval(found, [])) if seeds > 1 and found else "–"
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
    return Number(value, _spread(error), 1, models, "full/exact.metrics.json", key)


def converged(method, products, what="spearman", damping="0.1 x mean"):
    """Notebook 05: correlation with a converged solve of one stage, ± over questions; or "cost"."""
    at = {"method": method, "products": products, "damping": damping}
    (found,) = (r for r in read("full", "scalability") if all(r[k] == x for k, x in at.items()))
    key = f"{damping}, {method}, {products} products: {what}"
    error = _spread(found.get(f"{what}_se"))
    return Number(found[what], error, 1, 1, "full/scalability.json", key)


# ------------------------------------------------------------------------------ notebooks 06 and 07


def _models(name="model_seeds"):
    return len(parameters("full", "06_retraining")[name])


def lds(method, models, form=None):
    """Agreement with retraining, ± by the bootstrap over halves and questions; of one model: the
    mean over the models."""
    found = [
        r for r in read("full", "retraining") if (r["method"], r["models"]) == (method, models)
    ]
    normalised = form == "normalised" if form else any(r["normalised"] for r in found)
    found = [r for r in found if r["normalised"] == normalised]
    if not found:
        return Number(None, "–", 0, 0, "", "")
    form = "normalised" if normalised else "raw"
    key = f"{method}, {form}, {models} models: lds"
    error = _spread(found[0]["lds_se"])
    return Number(found[0]["lds"], error, 1, _models(), "full/retraining.json", key)


def retrained(*keys, spread="–", models=None):
    """Another number of notebook 06."""
    found = metrics("full", "retraining")
    for key in keys:
        found = found[key]
    where = "full/retraining.metrics.json", ", ".join(keys)
    return Number(found, spread, 1, models or _models(), *where)


def exchanged(key):
    """LDS with one part of the score exchanged, a mean over the studied models."""
    return retrained("exchanged", key, models=_models("studied_seeds"))


def regime(where, *keys):
    """A number of notebook 11; where: ("recipes", name) or ("shares", share)."""
    whole = found = metrics("full", "regimes")
    for key in (*where, *keys):
        found = found[key]
    value, error = (found["value"], found["error"]) if isinstance(found, dict) else (found, None)
    models = whole["corpora"] * whole["models"]
    file, key = "full/regimes.metrics.json", ", ".join((*where, *keys))
    return Number(value, _spread(error), whole["corpora"], models, file, key)


def kinds(*keys, sign=1):
    """A number of notebook 09, ± over models and questions of each corpus."""
    found, at = (
        metrics("full", "kinds_of_fine_tuning"),
        parameters("full", "09_kinds_of_fine_tuning"),
    )
    for key in keys:
        found = found[key]
    value, error = (found["value"], found["error"]) if isinstance(found, dict) else (found, None)
    worlds = len(at["corpora"]), len(at["corpora"]) * len(at["model_seeds"])
    where = "full/kinds_of_fine_tuning.metrics.json", ", ".join(keys) + ", value" * bool(error)
    return Number(sign * value, _spread(error), *worlds, *where)


def kinds_over_corpora(what):
    """(low, high): by how much the merged model as full is ahead of LoRA's own T, by Student's t
    over the corpora."""
    each = metrics("full", "kinds_of_fine_tuning")[what]["LoRA"]["as full"]["each"]
    _, *ends = intervals.student([-x for x in each])
    file, worlds = "full/kinds_of_fine_tuning.metrics.json", (len(each), len(each))
    key = f"{what}, LoRA, as full, each: "
    return [Number(x, "–", *worlds, file, key + y) for x, y in zip(ends, ("low", "high"))]


def case_study(*keys, profile="full", spread=None, times=1):
    """A number of notebook 07, ± over models where there are several, else over answers, where `se`
    stands beside it; times: 100 for points."""
    found = metrics(profile, "case_studies")
    for key in keys[:-1]:
        found = found.get(key, {})
    if keys[-1] not in found:
        return Number(None, "–", 0, 0, "", "")
    study = "planted" if "planted" in keys else "removal of facts"
    worlds = len({r["seed"] for r in read(profile, "case_studies") if r["study"] == study})
    if spread is None:
        own = keys[-1] in ("precision_at_5", "flipped_or_halved")
        spread = _spread(found.get("se")) if own else "–"
    where = f"{profile}/case_studies.metrics.json", ", ".join(keys)
    return Number(times * found[keys[-1]], spread, worlds, worlds, *where)


def removed(*keys, profile="full"):
    """A number of notebook 10."""
    whole = found = metrics(profile, "removal")
    for key in keys:
        found = found[key]
    value, error = (found["value"], found["error"]) if isinstance(found, dict) else (found, None)
    where = f"{profile}/removal.metrics.json", ", ".join(keys)
    return Number(value, _spread(error), whole["test_beds"], whole["test_beds"], *where)


def leading():
    """(rival, its Number, its error's): the one that notebook 06's best score leads by least, of
    those that are no part of it; the lead."""
    leads = metrics("full", "retraining")["lead"]
    rivals = [x for x in leads if x.startswith(RIVALS_OF_RETRAINING)]
    rival = min(rivals, key=lambda x: leads[x]["value"])
    spread = _spread(leads[rival]["error"])
    value = retrained("lead", rival, "value", spread=spread)
    return rival, replace(value, value=abs(value.value)), retrained("lead", rival, "error")
