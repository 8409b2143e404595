"""Are the values in params.yaml of the kind that a notebook takes? Looked at before it starts.

A parameter is of the kind of its default in the notebook's own cell, inside of dicts and lists
too; KINDS has those that take another kind as well, and those whose default is None.
"""

import math
import re
from datetime import date

from msif.study.params import shown

NUMBER, WHOLE, TEXT, FLAG = "a number", "a whole number", "text", "true or false"
LIST, DICT, NULL = "a list", "a mapping", "null"

# stage.parameter, or a parameter of any stage: the kinds that it takes.
KINDS = {
    "testbed.pretraining": (DICT, NULL),
    "testbed.finetuning": (DICT, NULL),
    "pattern": (TEXT, NULL),
    "factors.documents": (WHOLE, NULL),
    "fact_tracing.queries": (WHOLE, NULL),
    "embedder": (TEXT, NULL),
    "fact_tracing.grid": (DICT, NULL),
    "fact_tracing.tried": (DICT, NULL),
    "at_once": (WHOLE, NULL),
    "fact_tracing.along": (LIST, NULL),
    "fact_tracing.refined": (DICT, NULL),
    "matched": (DICT, NULL),
    "causal": (DICT, NULL),
    "causal.processes": (WHOLE, NULL),
    "retraining.processes": (WHOLE, NULL),
    "scalability.most_products": (WHOLE, NULL),
    "counterfactual": (DICT, NULL),
    "counterfactual.processes": (WHOLE, NULL),
    "kinds_of_fine_tuning.processes": (WHOLE, NULL),
    "removal.processes": (WHOLE, NULL),
    "regimes.processes": (WHOLE, NULL),
    "your_models.base": (TEXT, NULL),
    "your_models.tuned": (TEXT, NULL),
    "your_models.documents": (TEXT, NULL),
    "your_models.rows": (TEXT, NULL),
    "your_models.questions": (WHOLE, TEXT, LIST),
    "your_models.device": (TEXT, WHOLE, NULL),
    "your_models.factor_documents": (WHOLE, NULL),
    "your_models.memory": (TEXT, WHOLE, NULL),
    "your_models.tried": (DICT, NULL),
}
# Lists that must have an entry, and those that must not have one twice.
FILLED = re.compile(r"(model_|reported_|retraining_|studied_)?seeds|dampings?|alphas?|times")
DISTINCT = re.compile(r"(\w+_)?seeds|checkpoints|along|subsets")
COUNTED = ("batch_size", "max_length", "width", "layers", "heads", "epochs")  # at least 1
PART_OF = {"reported_seeds": "seeds", "studied_seeds": "model_seeds"}
# What YAML reads as text though a number is meant, as it has no point or no sign.
ALMOST = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+|[-+]?(nan|inf)", re.I)


def check(section, defaults, profile, stage):
    """Raise ValueError for the first value of a section that is not as its notebook takes it.

    section: {parameter: value}. defaults: {parameter: value} of the notebook's cell; of one that is
    no literal nothing is known. The sentence names the parameter, as profile.stage.parameter."""
    for name, value in section.items():
        where = f"{profile}.{stage}.{name}"
        known = name in defaults and type(defaults[name]) in KIND_OF
        allowed = KINDS.get(f"{stage}.{name}") or KINDS.get(name)
        _value(where, value, defaults[name] if known else None, allowed)
    for part, whole in PART_OF.items():
        there = section.get(whole, defaults.get(whole))
        if lacking := [x for x in section.get(part, []) if x not in (there or [])]:
            _refuse(f"{profile}.{stage}.{part}", lacking[0], f"one of {whole}, {shown(there)}")


KIND_OF = {
    bool: FLAG,
    int: WHOLE,
    float: NUMBER,
    str: TEXT,
    list: LIST,
    tuple: LIST,
    dict: DICT,
    type(None): NULL,
}


def _value(where, value, default, allowed=None):
    """One value, and what is in it; default: one of its kind, None where nothing is known."""
    _plain(where, value)
    if allowed is None and default is not None:
        allowed = (KIND_OF[type(default)],)
    kind = KIND_OF[type(value)]
    if allowed and not (kind in allowed or (kind == WHOLE and NUMBER in allowed)):
        _refuse(where, value, " or ".join(allowed))
    name = where.rpartition(".")[2]
    if name in COUNTED and kind == WHOLE and value < 1:
        _refuse(where, value, "at least 1")
    if kind == DICT:
        inside = default if isinstance(default, dict) else {}
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f'params.yaml: {where} has the name {key!r}; expected text, "…"')
            under = f"{where.split('.')[-1]}.{key}"
            _value(f"{where}.{key}", part, inside.get(key), KINDS.get(under))
    if kind == LIST:
        _list(where, value, default, name)


def _list(where, values, default, name):
    if FILLED.fullmatch(name) and not values:
        _refuse(where, values, "at least one entry")
    if DISTINCT.fullmatch(name) and (twice := [x for x in values if values.count(x) > 1]):
        raise ValueError(f"params.yaml: {where} has {shown(twice[0])} twice: {shown(values)}")
    like = default[0] if isinstance(default, list | tuple) and default else None
    alike = like is not None and all(type(x) is type(like) for x in default)
    if "seeds" in name:
        like, alike = 0, True
    for k, part in enumerate(values):
        _value(f"{where}[{k}]", part, like if alike else None)
        if "seeds" in name and part < 0:
            _refuse(f"{where}[{k}]", part, "a whole number from 0 on")


def _plain(where, value):
    """Refuse what JSON does not have, and what YAML read otherwise than it was meant."""
    if isinstance(value, date):
        _refuse(where, str(value), f'no date; write it as text, "{value}"')
    if type(value) not in KIND_OF:
        _refuse(where, value, "text, a number, true, false, null, a list or a mapping")
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(where, value, "a finite number")
    if isinstance(value, str) and ALMOST.fullmatch(value):
        _refuse(where, value, "a number, which YAML reads as text: write 1.0e-3, not 1e-3")


def _refuse(where, value, expected):
    raise ValueError(f"params.yaml: {where} is {shown(value)}; expected {expected}")
