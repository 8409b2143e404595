"""What a stage takes, before it starts."""

import math
import sys
from dataclasses import replace
from typing import Any, cast

from msif.api.models import Model
from msif.api.stages import a_model
from msif.core import checks, data, pairs
from msif.core.models import limits
from msif.core.resources import available_memory
from msif.scale.calibration import of_fit, of_scores
from msif.scale.plan import plan_fit, plan_score, score_products
from msif.scale.plans import FitPlan, ScorePlan
from msif.scale.sizes import human, parse_bytes
from msif.scale.solving import plan_solve, preferences_bytes

QUESTIONS = 8  # for which a plan says what a stage of adapters takes


def plan(
    model: Model,
    sequences: pairs.Items,
    *,
    questions: int | None = None,
    labels: str = "gaussian",
    samples: int = 2,
    batch_size: int = 32,
    memory: int | str | None = None,
    seconds: float = 0,
) -> FitPlan | ScorePlan:
    """What fitting the curvature on these sequences takes; or, given a number of `questions`, what
    scoring the sequences for them takes. Printed, it is readable; bytes and FLOP are fields.

    From shapes alone: no weight is read. With `seconds`, a few of the batches are run here, for
    about so long (10 do): memory is then a measured batch's, and `plan.time` is there, in seconds.
    memory: bytes, "16GiB", or None for what is free: decides in how many partitions the layers are
    fitted; preferences have one. Of adapters, what solving for 8 questions takes is told with it.
    Raises MemoryError, saying what would do, where not even a single layer fits; ValueError for
    pairs that are to be timed, and seconds below 0.

    >>> plan = msif.plan(base, docs, memory="1GiB")
    >>> len(plan.partitions)
    1
    >>> plan.peak < 2**30
    True
    >>> msif.plan(base, docs, questions=8).queries
    8
    >>> msif.plan(base, docs, seconds=1).time > 0
    True
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}: expected a finite number, at least 0")
    pairs.check(sequences := list(sequences), *limits(a_model(model).tracked.model))
    if questions is not None:
        questions = checks.whole("questions", questions)
    if pairs.are_pairs(sequences):
        if seconds:
            raise ValueError(f"seconds is {seconds}: pairs are not timed, expected 0")
        return _of_pairs(model, sequences, questions, batch_size, memory)
    rows, net, known = cast(list[data.Sequence], sequences), model.tracked, None
    lengths = [len(x.input_ids) for x in rows]
    how: dict[str, Any] = {"batch_size": batch_size}
    if questions is not None:
        if seconds:
            known = of_scores(net, rows, questions, seconds=seconds, **how)
        return plan_score(net, lengths, questions, calibration=known, **how)
    if seconds:
        known = of_fit(net, rows, labels=labels, samples=samples, seconds=seconds, **how)
    draws = 1 if labels == "true" else samples
    found = plan_fit(net, lengths, draws=draws, memory=memory, calibration=known, **how)
    return _with_solving(found, model)


def _of_pairs(model, items, questions, batch_size, memory):
    """Both rows of a pair are in one batch; nothing is drawn, written, or fitted in parts."""
    lengths, net = [len(x.input_ids) for x in pairs.rows_of(items)], model.tracked
    if questions is not None:
        scored = plan_score(net, lengths, questions, batch_size=2 * batch_size)
        each = [len(x.chosen.input_ids) + len(x.rejected.input_ids) for x in items]
        flops = score_products(net.weights, each, questions)
        return replace(scored, documents=len(items), disk=0, product_flops=flops)
    found = plan_fit(net, lengths, draws=1, batch_size=2 * batch_size, memory=sys.maxsize)
    held = found.model + preferences_bytes(net.layers, batch_size, max(lengths))
    found = replace(found, held=held)
    budget = available_memory() if memory is None else parse_bytes(memory)
    if budget is not None and budget < found.peak:
        raise MemoryError(
            f"preferences are fitted with all layers at once, which needs {human(found.peak)}, the "
            f"start of the stage included; the budget is {human(budget)}: give more memory, a "
            f"smaller batch_size, or fewer layers by a pattern"
        )
    return _with_solving(found, model)


def _with_solving(plan, model):
    if not model.adapters:
        return plan
    return replace(plan, adapters=plan_solve(model.tracked.layers, model.adapters, QUESTIONS))
