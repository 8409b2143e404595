"""Recipes of training that differ in one thing from the first: how smooth they are, what their
scores are, and what retraining does, each kept in scratch/.

    recipe     its name: {} for the first, for others {"pretraining": {…}, "finetuning": {…}}, what
               is other than in the first
    outcome    f, the log-probability of each query's answer at θ₂ (nats), with documents left out
    own        retrained with the seed of the model that gives the scores, others: with other seeds
"""

from dataclasses import dataclass

import numpy as np
import torch

from msif.core.metasmoothness import document_weights, metasmoothness
from msif.study import metrics, scratch
from msif.study.beds import retraining, testbed
from msif.study.retraining import datamodels, projected, unrolled
from msif.study.tracing.case import trained_case
from msif.study.tracing.curvatures import with_products, with_shampoo
from msif.study.tracing.methods import scored

SHOWN = (
    "multi_stage/normalised",
    "pretraining_only/normalised",
    "single_stage_finetuned/normalised",
    "gradient_dot/normalised",
)
REFINED, SHAMPOO = "multi_stage_refined/normalised", "multi_stage_shampoo/normalised"
TRACKSTAR, TRAK = "trackstar/raw", "trak/raw"
COUNT, EXACT = "statements", "exact derivative"


def check(pretraining, recipes, shares, windows, seeds):
    """Raise ValueError, before any training, for what this study cannot compare.

    shares: all that are left out. windows: last epochs of the first recipe. seeds: the other
    ones."""
    if len(set(seeds)) < 2:
        raise ValueError(
            f"retraining_seeds is {seeds}; expected two at least: what noise allows is their "
            "agreement"
        )
    if wrong := [x for x in shares if not 0 < x < 1]:
        raise ValueError(f"share {wrong[0]}: expected one between 0 and 1, of what is left out")
    if wrong := [x for x in windows if not 1 <= x <= pretraining["epochs"]]:
        raise ValueError(
            f"window {wrong[0]}: expected 1 to {pretraining['epochs']}, the epochs of pre-training"
        )
    if not recipes or next(iter(recipes.values())):
        raise ValueError("recipes: the first must change nothing; the others differ from it")


def recipe(corpus, model, pretraining, finetuning, changes):
    """A `retraining.Recipe` of a corpus with some settings of training changed."""
    first = pretraining | changes.get("pretraining", {})
    second = finetuning | changes.get("finetuning", {})
    return retraining.Recipe(corpus, model, first, second)


@dataclass(frozen=True)
class Scored:
    """A recipe's models, one a seed: exact match of each, and {method: (q, N)} of each."""

    right: list
    tables: list


def scores(plan, seeds, *, refined, trackstar, trak, **settings):
    """The `Scored` of a recipe.

    settings: as for `methods.scored`. refined: {"documents", "iterations"} of `with_products`.
    trackstar, trak: their settings, as in `projected`; both at one model, as the others are."""
    cases = [trained_case(plan, s, [], batch_size=settings["batch_size"]) for s in seeds]
    stages, counted = (settings["damping"], settings["alpha"]), datamodels.statements(plan.corpus)

    def table(case, seed):
        found = scored(case, **settings)
        found |= with_products(case, refined["documents"], refined["iterations"], *stages)
        found |= with_shampoo(case, *stages, seed=seed)
        found = {name: found[name] for name in (*SHOWN, REFINED, SHAMPOO)}
        (found[TRACKSTAR],) = projected.trackstar_scores(case, [trackstar])
        (found[TRAK],) = projected.trak_of_one(case, [trak])
        return found | {COUNT: counted}

    return Scored([_right(case) for case in cases], list(map(table, cases, seeds)))


def _right(case):
    tuned, rows = case.bed.model("finetuned"), case.bed.corpus.queries
    return float(np.mean([ok for _, ok in testbed.answers(tuned, case.bed.tokenizer, rows)]))


def smoothness(plan, seeds, step=0.1):
    """Metasmoothness of θ₂ for each seed: three trainings of both stages, the documents' weights
    moved along a direction drawn from the seed."""

    def of(seed):
        weights = document_weights(len(plan.corpus.documents), seed, step)
        return metasmoothness([retraining.weighted(plan, w, seed) for w in weights])

    def compute():
        torch.set_num_threads(1)  # equal numbers on any machine, as in retraining
        return [of(seed) for seed in seeds]

    key = plan.key() | {"seeds": list(seeds), "step": step}
    return scratch.value("smoothness", key, compute)


def derivative(plan, seed, queries):
    """{`EXACT`: (q, N)}: the derivative of f through both trainings, for some queries; a document
    weighs 1, so that N times it is in the unit of the other scores."""
    found = unrolled.scores(plan, seed, queries)
    return {EXACT: found * found.shape[1]}


@dataclass(frozen=True)
class Outcomes:
    """f after retraining without each of some subsets ((subsets, N) bool): own (subsets, seeds, q)
    with the seeds of the first models, others (subsets, seeds, q) with other seeds."""

    left_out: torch.Tensor
    own: np.ndarray
    others: np.ndarray

    @property
    def ceiling(self):
        """The LDS of a perfect prediction of the mean of `others`: what noise allows."""
        return self.allowed(self.others.shape[1])

    def allowed(self, seeds):
        """The same of the mean of so many other seeds."""
        return metrics.noise_ceiling(metrics.seed_agreement(self.others), seeds)


def outcomes(plan, share, subsets, own, others, processes=None, last=None):
    """The `Outcomes` of leaving out `share` of the documents, `subsets` times. own, others: seeds.
    last: left out in that many last epochs of pre-training alone."""
    left_out = retraining.subsets(len(plan.corpus.documents), subsets, share)
    found = retraining.outcomes(
        plan, left_out, [*own, *others], processes, f"{share:.0%} left out", last
    )
    f = found["log_probability"].numpy()
    return Outcomes(left_out, f[:, : len(own)], f[:, len(own) :])


def lds(tables, found, queries=None, resamples=300):
    """{method: {"own", "others", "ensemble": (LDS, standard error)}}.

    own: the first models, each against the retrainings of its own seed; others: each model against
    those of each other seed, one at a time, as noisy as those; both are means. ensemble: the
    models' mean against the mean of the other seeds. queries: numbers of those that the scores are
    of (None: all)."""
    chosen = slice(None) if queries is None else list(queries)
    own, others = found.own[:, :, chosen], found.others[:, :, chosen]

    def against(table, measured):
        predicted = datamodels.predicted(table, found.left_out)
        return {name: metrics.lds(p, measured, resamples) for name, p in predicted.items()}

    per_own = [against(t, own[:, [k]]) for k, t in zip(range(own.shape[1]), tables)]
    per_other = [against(t, others[:, [k]]) for t in tables for k in range(others.shape[1])]
    together = against(datamodels.ensemble(tables), others)
    return {
        name: {
            "own": _mean([x[name] for x in per_own]),
            "others": _mean([x[name] for x in per_other]),
            "ensemble": together[name],
        }
        for name in together
    }


def gain(tables, found, method, other):
    """LDS of the models' mean by one method minus that by another, on the same subsets and queries:
    (difference, standard error)."""
    predicted = datamodels.predicted(datamodels.ensemble(tables), found.left_out)
    return metrics.lds_difference(predicted[method], predicted[other], found.others)


def _mean(pairs):
    """Mean of values and of their errors: the subsets and queries are the same ones."""
    return tuple(float(x) for x in np.mean(pairs, axis=0))


def pooled(pairs):
    """Mean of (value, error) over independent corpora, and its error."""
    values, errors = np.array(pairs, dtype=float).T
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))
