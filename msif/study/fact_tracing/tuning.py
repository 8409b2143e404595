"""Settings of every method that has some, tried on one seed: as many for each rival as for ours.

    {method: {knob: [values]}} -> {method: [{"settings", "raw", "normalised"}]} -> {method: best}

The numbers are MRR of the plain condition; "normalised" is None where a method has one form. What
is best is so by its better form.
"""

from itertools import product

from msif.core.influence import Damping, Stage, precondition, query_gradients
from msif.study import metrics, scratch
from msif.study.tracing import rivals
from msif.study.tracing.methods import score_together

OURS = "multi_stage"


def settings(knobs):
    """{knob: [values]} -> [{knob: value}], every combination."""
    return [dict(zip(knobs, values)) for values in product(*knobs.values())]


def tried(case, grids, batch_size=64):
    """{method: [{"settings", "raw", "normalised"}]} of {method: {knob: [values]}}, kept in
    scratch/.

    Raises ValueError for a method that cannot be tuned, and for one with fewer settings than
    multi_stage."""
    if unknown := grids.keys() - METHODS.keys():
        raise ValueError(f"nothing is tuned of {sorted(unknown)}; expected of {sorted(METHODS)}")
    lists = {method: settings(knobs) for method, knobs in grids.items()}
    ours = len(lists.get(OURS, ()))
    if few := {method: len(x) for method, x in lists.items() if len(x) < ours}:
        raise ValueError(
            f"settings tried: {few}; expected at least {ours} each, as many as of ours"
        )

    def compute():
        return {method: _tried(case, method, few, batch_size) for method, few in lists.items()}

    return scratch.value("tuning", case.key() | {"tried": lists}, compute)


def _tried(case, method, few, batch_size):
    found = METHODS[method](case, few, batch_size)
    return [{"settings": x, **_mrr(case, pair)} for x, pair in zip(few, found)]


def _mrr(case, pair):
    """{"raw", "normalised"}: MRR of (raw, normalised or None)."""

    def mean(values):
        return float(metrics.reciprocal_ranks(values.cpu().numpy(), case.proponents).mean())

    raw, normalised = pair
    return {
        "raw": round(mean(raw), 4),
        "normalised": None if normalised is None else round(mean(normalised), 4),
    }


def value(record):
    """MRR of the better form of one setting that was tried."""
    return max(x for x in (record["raw"], record["normalised"]) if x is not None)


def best(tried):
    """{method: its best record}, the first of equals."""
    return {method: max(records, key=value) for method, records in tried.items()}


def record(tried):
    """{method: {"tried": how many, "best": which, "mrr": its better form's, "settings": {which:
    {"raw", "normalised"}}}}, for a file; a form that there is not is left out."""
    return {
        method: {
            "tried": len(records),
            "best": named(max(records, key=value)["settings"]),
            "mrr": max(map(value, records)),
            "settings": {
                named(x["settings"]): {
                    form: x[form] for form in ("raw", "normalised") if x[form] is not None
                }
                for x in records
            },
        }
        for method, records in tried.items()
    }


def named(setting):
    """{"damping": 0.1, "query_at": "own"} -> "damping 0.1, query_at own"."""
    return ", ".join(f"{knob} {x}" for knob, x in setting.items())


def _gradient_method(name, vectors):
    """A method whose settings share one pass: vectors(case, settings) -> [w], candidates at
    `name`."""

    def pairs(case, few, batch_size):
        found = dict(enumerate(vectors(case, few)))
        scores = score_together(case.tracked(name), case.bed.documents, found, batch_size, "tuning")
        return [(s.values, s.normalised()) for s in scores.values()]

    return pairs


def _multi_stage(case, few):
    q = query_gradients(case.tracked("finetuned"), case.queries)
    return [precondition(q, case.chain(**x))[0] for x in few]


def _single_stage(name):
    def vectors(case, few):
        q = query_gradients(case.tracked(name), case.queries)
        return [Stage(case.factors[name], Damping(x["damping"])).inverse(q) for x in few]

    return _gradient_method(name, vectors)


def _rival(scores, names):
    """A method of `rivals`, which has one form; names: of a case's models for the documents."""

    def pairs(case, few, batch_size):
        return [(x.float().cpu(), None) for x in scores(case, names(case), few, batch_size)]

    return pairs


def _last(case):
    return ["finetuned"]


def _first(case):
    return ["pretrained"]


def _path(case):
    return case.bed.checkpoints


METHODS = {
    OURS: _gradient_method("pretrained", _multi_stage),
    "single_stage_finetuned": _single_stage("finetuned"),
    "single_stage_pretrained": _single_stage("pretrained"),
    "trackstar": _rival(rivals.trackstar_at, _last),
    "trackstar_pretrained": _rival(rivals.trackstar_at, _first),
    "trackstar_trajectory": _rival(rivals.trackstar_at, _path),
    "trak": _rival(rivals.trak_at, _last),
    "trak_pretrained": _rival(rivals.trak_at, _first),
    "trak_trajectory": _rival(rivals.trak_at, _path),
}
RIVALS = tuple(name for name in METHODS if name.startswith(("trackstar", "trak")))


def scored(case, chosen, batch_size=64):
    """{method/raw: (q, n)} of {method of `RIVALS`: its settings}, kept in scratch/."""

    def compute():
        found = {method: METHODS[method](case, [x], batch_size) for method, x in chosen.items()}
        return {f"{method}/raw": pairs[0][0] for method, pairs in found.items()}

    return scratch.tensors("tuned", case.key() | {"chosen": chosen}, compute)
