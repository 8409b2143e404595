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
from msif.scale.plan import plan_fit, plan_score, preferences_products, score_products
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
    fitted; preferences have one, and their time counts the passes at the model that they began
    with, as fast as those at this one. Of adapters, what solving for 8 questions takes is told with
    it. Raises MemoryError, saying what would do, where not even a single layer fits; ValueError for
    seconds below 0.

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
        return _of_pairs(model, sequences, questions, batch_size, memory, seconds)
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


def _of_pairs(model, items, questions, batch_size, memory, seconds):
    """Both rows of a pair are in one batch; nothing is drawn, written, or fitted in parts.

    Of fits, there are two passes forward for the margins at either end, two passes forward and
    backward at the end, and one at both; of scores, one forward at the start besides."""
    rows, net = [replace(x, index=n) for n, x in enumerate(pairs.rows_of(items))], model.tracked
    lengths, how = [len(x.input_ids) for x in rows], {"batch_size": 2 * batch_size}
    each, known = [sum(x) for x in zip(lengths, lengths[len(items) :])], None
    if questions is not None:
        if seconds:
            known = of_scores(net, rows, questions, seconds=seconds, **how)
        scored = plan_score(net, lengths, questions, calibration=known, **how)
        products = score_products(net.weights, each, questions)
        found = {"product_flops": products, "model_flops": 3 * scored.forward}
        return replace(scored, documents=len(items), disk=0, **found)
    if seconds:
        known = of_fit(net, rows, labels="true", seconds=seconds, **how)
    found = plan_fit(net, lengths, draws=1, memory=sys.maxsize, calibration=known, **how)
    passes = 10 + 3 * bool(model.adapters)  # of those, the mean gradient, with its margins
    found = replace(
        found,
        held=found.model + preferences_bytes(net.layers, batch_size, max(lengths)),
        model_flops=passes * found.forward,
        product_flops=preferences_products(net.layers, each),
    )
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
