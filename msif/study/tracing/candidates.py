"""Scores of each query's own candidates (the `candidates` of its corpus row, numbers of documents),
a few queries at a time.

Every method's preconditioned query is as large as the tracked weights, so that all queries at once
do not fit a large model. The law:

    memory for query vectors  ≈  bytes of one query vector × methods × at_once

× 2.3 while a pass stacks and transposes them, where one vector has a float32 number for each
tracked weight, and its bias, whatever the number of documents. For bloom-560m (24 layers ×
12 × 1024² weights) that is 1.2 GB a vector; 7 methods × 4 queries ask for 34 GB, at the peak 77 GB.
Models and factors come on top.

The passes over documents are those of the union of each group's candidates: larger groups share
more of them.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from msif.study.beds.testbed import Testbed
from msif.study.tracing import methods


def candidate_table(case, at_once=4, **settings):
    """{"method/form": (q, n) float32 on the CPU} of all methods of `methods.all_methods` and both
    `names.FORMS` by `candidate_scores`.

    settings: of `all_methods` (damping, alpha, single_stage_damping, batch_size, title).
    Positive = proponent, in nats per unit of document weight (raw) and divided by the candidate's
    gradient norm (normalised); −inf outside a query's candidates. With a single pre-training model
    there is no path, and the …_trajectory methods and TracInCP are left out; with several, each
    checkpoint of the former is divided by its standard deviation over one group's queries and
    documents, so that they alone depend on `at_once`. Raises as `candidate_scores` does.
    """
    found = candidate_scores(case, partial(methods.all_methods, **settings), at_once)
    path = len(case.bed.checkpoints) > 1
    return {
        f"{method}/{form}": values
        for method, pair in found.items()
        if path or not method.endswith(("_trajectory", "tracincp"))
        for form, values in zip(methods.FORMS, pair)
    }


def candidate_scores(case, methods, at_once=4):
    """{method: (raw, normalised)}, each (q, n) float32 on the CPU and −inf outside a query's own
    candidates: what `methods` gives for all queries and documents, at the cost of candidates alone
    and in the memory of a few queries.

    case: a `Case`; methods: a function of a case, such as `methods.all_methods` with its settings,
    that scores each pair of query and document by itself. at_once: queries that share a pass over
    the union of their candidates. Raises ValueError, before long work, for at_once < 1 and for a
    query without candidates.
    """
    wanted = [row.get("candidates") for row in case.rows]
    if at_once < 1:
        raise ValueError(
            f"at_once is {at_once}; expected at least 1, the queries whose vectors are held "
            "together"
        )
    if lacking := [row["prompt"] for row in case.rows if not row.get("candidates")]:
        raise ValueError(
            f"{len(lacking)} of {len(wanted)} queries have no candidates, the first is "
            f"{lacking[0]!r}; expected document numbers"
        )
    bed = _Loaded(**vars(case.bed))
    shape, found = (len(wanted), len(bed.documents)), {}
    for start in range(0, len(wanted), at_once):
        own = wanted[start : start + at_once]
        union = sorted(set().union(*own))
        column = {n: i for i, n in enumerate(union)}
        few = replace(bed, documents=[bed.documents[n] for n in union])
        here = methods(replace(case, queries=case.queries[start : start + at_once], bed=few))
        _place(found, here, start, own, column, shape)
    return {name: tuple(pair) for name, pair in found.items()}


def _place(found, here, start, own, column, shape):
    """Write one group's scores, {method: pair of (few queries, union)}, where they belong in
    `found`, whose values have the `shape` (q, n); column: {document: place in the union}."""
    for name, pair in here.items():
        if name not in found:
            found[name] = [torch.full(shape, -torch.inf, dtype=torch.float32) for _ in pair]
        for into, values in zip(found[name], pair):
            for i, documents in enumerate(own):
                columns = [column[n] for n in documents]
                into[start + i, documents] = values[i, columns].float().cpu()


@dataclass(frozen=True)
class _Loaded(Testbed):
    """A test-bed that reads each model once, however often it is asked for, and holds it."""

    nets: dict = field(default_factory=dict)

    def model(self, *wanted):
        if wanted not in self.nets:
            self.nets[wanted] = super().model(*wanted)
        return self.nets[wanted]
