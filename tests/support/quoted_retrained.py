"""Numbers of the notebooks that train both stages again, 06, 07, 09 to 11, as pages quote them."""

from dataclasses import replace

from msif.study import intervals
from msif.study.pipeline.retrained import RIVALS_OF_RETRAINING
from support.quoted import (
    NOTHING,
    Number,
    metrics,
    parameters,
    read,
    recorded,
    with_ends,
)


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
        return NOTHING
    form = "normalised" if normalised else "raw"
    key = f"{method}, {form}, {models} models: lds"
    return Number(found[0]["lds"], found[0]["lds_se"], 1, _models(), "full/retraining.json", key)


def retrained(*keys, models=None):
    """Another number of notebook 06."""
    return recorded("full", "retraining", keys, 1, models or _models())


def exchanged(key):
    """LDS with one part of the score exchanged, a mean over the studied models."""
    return retrained("exchanged", key, models=_models("studied_seeds"))


def regime(where, *keys):
    """A number of notebook 11; where: ("recipes", name) or ("shares", share)."""
    return recorded("full", "regimes", (*where, *keys), *_worlds_of_regimes())


def recipe_count(key, count):
    """How many recipes of notebook 11; key: which."""
    return Number(count, None, *_worlds_of_regimes(), "full/regimes.metrics.json", key)


def _worlds_of_regimes():
    whole = metrics("full", "regimes")
    return whole["corpora"], whole["corpora"] * whole["models"]


def kinds(*keys):
    """A number of notebook 09, ± over models and questions of each corpus."""
    at = parameters("full", "09_kinds_of_fine_tuning")
    worlds = len(at["corpora"]), len(at["corpora"]) * len(at["model_seeds"])
    return recorded("full", "kinds_of_fine_tuning", keys, *worlds)


def kinds_each(*keys):
    """A lead of notebook 09 on each corpus."""
    found = metrics("full", "kinds_of_fine_tuning")
    for key in (*keys, "each"):
        found = found[key]
    models = len(parameters("full", "09_kinds_of_fine_tuning")["model_seeds"])
    file, key = "full/kinds_of_fine_tuning.metrics.json", ", ".join((*keys, "each"))
    return [Number(x, None, 1, models, file, f"{key}, {n}") for n, x in enumerate(found, 1)]


def leads_by_corpus():
    """By how much multi-stage is ahead of single-stage in LDS of five models, on each corpus that
    notebooks 06, 09 (full fine-tuning) and 11 (its first recipe) have: of the score itself, not of
    its best variant."""
    ours, single = lds("multi_stage", 5), lds("single_stage_finetuned", 5)
    key = f"{ours.key} less single-stage's"
    return [
        replace(ours, value=ours.value - single.value, spread=None, key=key),
        *kinds_each("lds_lead_at_best", "full", "single"),
        regime(("gains", "as it is"), "single-stage"),
    ]


def lead_over_corpora():
    """(value, low, high) of `leads_by_corpus`, by Student's t over the corpora."""
    each = leads_by_corpus()
    models = sum(x.models for x in each)
    key = f"{each[0].key}; with {', '.join(x.key for x in each[1:])} of notebooks 09 and 11"
    found = intervals.student([x.value for x in each])
    return with_ends(*found, len(each), models, each[0].file, key)


def gains_of_fine_tunings_curvature():
    """The least and the greatest of what it adds to that LDS, on the same corpora."""
    ours, without = lds("multi_stage", 5), lds("pretraining_only", 5)
    key = f"{ours.key} less that without fine-tuning's curvature"
    each = [
        replace(ours, value=ours.value - without.value, spread=None, key=key),
        *kinds_each("lds_lead_at_best", "full", "identity"),
        regime(("gains", "as it is"), "without fine-tuning's stage"),
    ]
    return [pick(each, key=lambda x: x.value) for pick in (min, max)]


def kinds_over_corpora(what):
    """(low, high): by how much the merged model as full is ahead of LoRA's own T, by Student's t
    over the corpora."""
    each = kinds_each(what, "LoRA", "as full")
    found = intervals.student([x.value for x in each])
    models = sum(x.models for x in each)
    key = f"{what}, LoRA, as full, each"
    _, low, high = with_ends(*found, len(each), models, each[0].file, key)
    return [-high, -low]


def case_study(*keys, profile="full"):
    """A number of notebook 07, ± over models where there are several, else over answers."""
    study = "planted" if "planted" in keys else "removal of facts"
    worlds = len({r["seed"] for r in read(profile, "case_studies") if r["study"] == study})
    try:
        return recorded(profile, "case_studies", keys, worlds, worlds)
    except KeyError:
        assert keys[0] != "leads", f"no {keys} in {profile}/case_studies.metrics.json"
        return NOTHING


def removed(*keys, profile="full"):
    """A number of notebook 10."""
    worlds = metrics(profile, "removal")["test_beds"]
    return recorded(profile, "removal", keys, worlds, worlds)


def leading():
    """("ahead of" or "behind", rival, how much, its error): the rival that notebook 06's best score
    leads by least, of those that are no part of it."""
    leads = metrics("full", "retraining")["lead"]
    rivals = [x for x in leads if x.startswith(RIVALS_OF_RETRAINING)]
    rival = min(rivals, key=lambda x: leads[x]["value"])
    value, error = (retrained("lead", rival, x) for x in ("value", "error"))
    if value.value > 0:
        return "ahead of", rival, value, error
    return "behind", rival, -value, -error
