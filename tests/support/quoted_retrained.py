"""Numbers of the notebooks that train both stages again, 06, 07, 09 to 11, as pages quote them."""

from dataclasses import replace

from msif.study import intervals
from msif.study.pipeline.retrained import RIVALS_OF_RETRAINING
from support.quoted import Number, metrics, parameters, read, spread_of


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
    error = spread_of(found[0]["lds_se"])
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


def regime(where, *keys, count=False):
    """A number of notebook 11; where: ("recipes", name) or ("shares", share). count: how many there
    are of it."""
    whole = found = metrics("full", "regimes")
    for key in (*where, *keys):
        found = found[key]
    if count:
        found = len(found)
    value, error = (found["value"], found["error"]) if isinstance(found, dict) else (found, None)
    models = whole["corpora"] * whole["models"]
    file, key = "full/regimes.metrics.json", ", ".join((*where, *keys))
    return Number(value, spread_of(error), whole["corpora"], models, file, key)


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
    return Number(sign * value, spread_of(error), *worlds, *where)


def kinds_each(*keys):
    """A lead of notebook 09 on each corpus."""
    found = metrics("full", "kinds_of_fine_tuning")
    for key in (*keys, "each"):
        found = found[key]
    models = len(parameters("full", "09_kinds_of_fine_tuning")["model_seeds"])
    where = "full/kinds_of_fine_tuning.metrics.json", ", ".join((*keys, "each"))
    return [Number(x, "–", 1, models, *where) for x in found]


def kinds_over_corpora(what):
    """(low, high): by how much the merged model as full is ahead of LoRA's own T, by Student's t
    over the corpora."""
    each = metrics("full", "kinds_of_fine_tuning")[what]["LoRA"]["as full"]["each"]
    _, *ends = intervals.student([-x for x in each])
    file, worlds = "full/kinds_of_fine_tuning.metrics.json", (len(each), len(each))
    key = f"{what}, LoRA, as full, each: "
    return [Number(x, "–", *worlds, file, key + y) for x, y in zip(ends, ("low", "high"))]


def case_study(*keys, profile="full", spread=None, times=1):
    """A number of notebook 07, ± over models where there are several, else over answers.

    The error is the `se` that stands beside it; times: 100 for points."""
    found = metrics(profile, "case_studies")
    for key in keys[:-1]:
        found = found.get(key, {})
    if keys[-1] not in found:
        assert keys[0] != "leads", f"no {keys} in {profile}/case_studies.metrics.json"
        return Number(None, "–", 0, 0, "", "")
    study = "planted" if "planted" in keys else "removal of facts"
    worlds = len({r["seed"] for r in read(profile, "case_studies") if r["study"] == study})
    if spread is None:
        own = keys[-1] in ("precision_at_5", "flipped_or_halved")
        spread = spread_of(found.get("se")) if own else "–"
    where = f"{profile}/case_studies.metrics.json", ", ".join(keys)
    return Number(times * found[keys[-1]], spread, worlds, worlds, *where)


def removed(*keys, profile="full", times=1):
    """A number of notebook 10; times: 100 for points."""
    whole = found = metrics(profile, "removal")
    for key in keys:
        found = found[key]
    value, error = (found["value"], found["error"]) if isinstance(found, dict) else (found, None)
    where = f"{profile}/removal.metrics.json", ", ".join(keys)
    worlds = whole["test_beds"]
    return Number(times * value, spread_of(error), worlds, worlds, *where)


def leading():
    """("ahead of" or "behind", rival, how much, its error): the rival that notebook 06's best score
    leads by least, of those that are no part of it."""
    leads = metrics("full", "retraining")["lead"]
    rivals = [x for x in leads if x.startswith(RIVALS_OF_RETRAINING)]
    rival = min(rivals, key=lambda x: leads[x]["value"])
    spread = spread_of(leads[rival]["error"])
    value = retrained("lead", rival, "value", spread=spread)
    place = "ahead of" if value.value > 0 else "behind"
    error = retrained("lead", rival, "error")
    return place, rival, replace(value, value=abs(value.value)), error
