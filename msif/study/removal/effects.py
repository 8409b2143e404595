"""Right answers of a test-bed, traced by notebook 3, asked again when both stages were trained
without the documents that each method ranks highest.

The retrainings are `case_studies.counterfactual`'s: answers are treated in groups in which no two
share a subject or an answer, what is left out weighs 0 in the same batches, and each retraining is
kept, so that a killed run goes on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file

from msif.study import params
from msif.study.beds import sources, testbed
from msif.study.beds.retraining import Recipe
from msif.study.case_studies import counterfactual
from msif.study.paths import results
from msif.study.tracing.case import asked

RANDOM = "random"  # a method that needs no scores: as many documents, drawn
CLASSES = SAYS, NAMES, OTHER = "states the fact", "names its subject", "neither"


@dataclass(frozen=True)
class Traced:
    """Rows that the fine-tuned model answers rightly ({"prompt", "answer", "proponents", …}), and
    each method's scores of all documents for them, {method: (len(rows), N)}."""

    recipe: Recipe
    rows: list
    scores: dict


def traced(profile, seed, methods):
    """The `Traced` of one seed of a profile.

    methods: {label: column of notebook 3's scores, such as "bm25/raw", or `RANDOM`}. Raises
    ValueError for a column that is not there, and where the test-bed, its scores and params.yaml
    are not of one corpus."""
    bed = testbed.load(results(profile, "testbed", f"seed-{seed}"))
    recipe = _recipe(profile, seed)
    if recipe.corpus.digest() != bed.corpus.digest():
        raise ValueError(
            f"the testbed section of {profile!r} in params.yaml gives another corpus than the one "
            "that notebook 1 trained on: run it again"
        )
    how = params.section("03_fact_tracing", profile)
    tuned = bed.model("finetuned")
    queries = asked(bed, tuned, how["only_correct"], how["queries"])
    right = {query.index for query in asked(bed, tuned)}
    kept = [n for n, query in enumerate(queries) if query.index in right]
    rows = [bed.corpus.queries[queries[n].index] for n in kept]
    found = load_file(results(profile, "fact_tracing", f"seed-{seed}") / "scores.safetensors")
    shape = (len(queries), len(bed.documents))
    scores = {label: _column(found, name, shape, seed)[kept] for label, name in methods.items()}
    return Traced(recipe, rows, scores)


def _recipe(profile, seed):
    settings = dict(params.section("01_testbed", profile))
    for name in ("seeds", "checkpoints"):
        settings.pop(name)
    return sources.recipe(seed, **settings)


def _column(found, name, shape, seed):
    """The scores (q, N) of one method; of `RANDOM` drawn for this seed."""
    if name == RANDOM:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    if name not in found:
        raise ValueError(
            f"methods: {name!r} is none of notebook 3's scores; expected {RANDOM!r} or one of "
            f"{', '.join(sorted(found))}"
        )
    if tuple(found[name].shape) != shape:
        raise ValueError(
            f"notebook 3's scores are {tuple(found[name].shape)}; expected {shape} (queries, "
            "documents): run it again"
        )
    return found[name]


def chosen(rows, groups, together, seed=0):
    """Numbers of the rows that are treated: the `groups` largest groups of at most `together`, of
    rows in random order, no two of a group with the same subject or the same answer."""
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    found = counterfactual.groups([rows[n] for n in order], together)
    largest = sorted(found, key=len, reverse=True)[:groups]
    return [order[n] for group in largest for n in group]


def withdrawn(case, numbers, *, top, together, seeds, processes=None):
    """{method: `counterfactual.Effect`} of leaving out the `top` documents of each of the rows
    `numbers`; seeds: of the retrainings."""
    rows = [case.rows[n] for n in numbers]
    scores = {name: values[numbers] for name, values in case.scores.items()}
    how = {"top": top, "together": together, "seeds": seeds, "processes": processes}
    return counterfactual.removal(case.recipe, rows, scores, **how)


def pooled(parts):
    """{method: `counterfactual.Effect`} over several test-beds' answers, for those methods that all
    of them have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: counterfactual.together([part[name] for part in parts]) for name in names}


def composition(case, numbers, top):
    """{method: {class: (len(numbers),) share of the `top` documents}}: those that state the row's
    fact, that only name its subject, and others."""
    texts = [document["text"] for document in case.recipe.corpus.documents]

    def share(values, n):
        best = torch.as_tensor(values[n]).topk(top).indices.tolist()
        found = [_class(case.rows[n], number, texts[number]) for number in best]
        return [found.count(name) / top for name in CLASSES]

    shares = {
        name: np.array([share(values, n) for n in numbers]) for name, values in case.scores.items()
    }
    return {name: dict(zip(CLASSES, x.T)) for name, x in shares.items()}


def _class(row, number, text):
    if number in row["proponents"]:
        return SAYS
    return NAMES if row["subject"] in text else OTHER


def drop(effect):
    """How many nats an answer's log-probability falls, mean over the seeds: (answers,)."""
    return (np.log(effect.before) - np.log(effect.after)).mean(1)


def runs(seeds, groups, methods, retraining_seeds):
    """How many retrainings of both stages that takes, those without removal included."""
    return len(seeds) * len(retraining_seeds) * (groups * len(methods) + 1)
