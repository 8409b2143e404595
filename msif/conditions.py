"""Conditions of a comparison: what each query should find, and among which documents.

    plain      the sentences that state the fact, among all documents
    matched    the sentences that state the fact, among sentences of the same words (`matched`)
    causal     the sentences whose removal lowers the answer's log-probability when both stages are trained again (`causal`)

Queries whose corpus row has `candidates` are ranked among those alone. Methods are named "method/form".
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from msif import metrics


@dataclass(frozen=True)
class Condition:
    """tables: one {method/form: scores (q, n)} for each seed. relevant, candidates: for each seed q lists of document numbers.
    rows: for each seed the q rows of the corpus."""
    name: str
    seeds: list
    tables: list
    relevant: list
    candidates: list
    rows: list

    @property
    def methods(self):
        """The names "method/form", as they come."""
        return list(self.tables[0])

    @property
    def queries(self):
        """How many queries, over all seeds."""
        return sum(map(len, self.relevant))

    @cached_property
    def reciprocal_ranks(self):
        """{method/form: [(q,) of each seed]}; ties in expectation."""
        return {name: [metrics.reciprocal_ranks(t[name], own) for t, own in zip(self.tables, self.relevant)] for name in self.methods}

    @cached_property
    def intervals(self):
        """{method/form: (mean, low, high)} of the MRR, 95 % bootstrap over seeds and queries."""
        return {name: metrics.bootstrap_interval(values) for name, values in self.reciprocal_ranks.items()}

    @cached_property
    def chance(self):
        """MRR of a random order, the mean over seeds and queries."""
        found = [metrics.reciprocal_ranks(metrics.within(np.zeros_like(next(iter(t.values()))), few), own)
                 for t, own, few in zip(self.tables, self.relevant, self.candidates)]
        return float(np.mean([x.mean() for x in found]))

    def error(self, name):
        """(mean over seeds, standard error over queries) of a method's MRR, seeds pooled."""
        values = self.reciprocal_ranks[name]
        return float(np.mean([x.mean() for x in values])), float(metrics.mean_and_error(np.concatenate(values))[1])

    def gain(self, name, other):
        """(mean, standard error over queries) of the paired difference in reciprocal rank."""
        mean, error = metrics.mean_and_error(np.concatenate([a - b for a, b in zip(
            self.reciprocal_ranks[name], self.reciprocal_ranks[other])]))
        return float(mean), float(error)

    def best(self, names):
        """That of the methods with the highest MRR."""
        return max(names, key=lambda name: self.intervals[name][0])

    def lead(self, name):
        """(rival, mean, standard error): the paired gain of a method over the best one that is neither multi-stage, nor a
        multi-stage score with one stage left out, nor fused."""
        own = ("multi_stage", "pretraining_only", "finetuning_only")
        rival = self.best([x for x in self.methods if not x.startswith(own) and " + " not in x])
        return rival, *self.gain(name, rival)

    def by_relation(self, name):
        """{relation: (MRR, standard error over queries)} of one method, seeds pooled, the most frequent relation first."""
        found = {}
        for rows, values in zip(self.rows, self.reciprocal_ranks[name]):
            for row, value in zip(rows, values):
                found.setdefault(row["relation"], []).append(value)
        order = sorted(found, key=lambda relation: -len(found[relation]))
        return {relation: metrics.mean_and_error(found[relation]) for relation in order if len(found[relation]) > 1}

    def by_proponents(self, name):
        """{number of relevant documents: (MRR, standard error over queries)} of one method, seeds pooled."""
        found = {}
        for own, values in zip(self.relevant, self.reciprocal_ranks[name]):
            for few, value in zip(own, values):
                found.setdefault(len(few), []).append(value)
        return {number: metrics.mean_and_error(found[number]) for number in sorted(found) if len(found[number]) > 1}

    def drawn(self):
        """([methods, the best first], {form: [(mean, low, high) of each]}) for `figures.tracing`; nan where a method has one form."""
        names, nothing = {name.split("/")[0]: None for name in self.methods}, (np.nan,) * 3
        best = lambda m: max(self.intervals[name][0] for name in self.methods if name.split("/")[0] == m)
        order = sorted(names, key=best, reverse=True)
        return order, {form: [self.intervals.get(f"{m}/{form}", nothing) for m in order] for form in ("raw", "normalised")}

    def records(self, costs):
        """One record for each seed, method and form (`metrics.tracing_record`). costs: {method: cost}; absent: None."""
        return [metrics.tracing_record(table[name], own, method=(pair := name.split("/"))[0], condition=self.name, seed=seed,
                                       queries=len(own), normalised=pair[1] == "normalised", cost=costs.get(pair[0]))
                for seed, table, own in zip(self.seeds, self.tables, self.relevant) for name in table]


def condition(name, cases, tables, relevant=None, only=None):
    """The `Condition` of cases {seed: tracing.Case} and tables {seed: {method/form: (q, n)}}.

    relevant: {seed: q lists}, by default each case's proponents. only: {seed: (q,) bool}, queries to keep; those without any
    relevant document are left out in any case."""
    seeds, found = list(cases), []
    for seed in seeds:
        rows, own = cases[seed].rows, (relevant or {}).get(seed, cases[seed].proponents)
        keep = np.array([bool(len(x)) for x in own]) & (np.ones(len(own), bool) if only is None else np.asarray(only[seed]))
        chosen, documents = np.flatnonzero(keep), len(cases[seed].bed.documents)
        few = [rows[q].get("candidates", range(documents)) for q in chosen]
        inside = {method: metrics.within(np.asarray(x)[chosen], few) for method, x in tables[seed].items()}
        found.append((inside, [list(own[q]) for q in chosen], few, [rows[q] for q in chosen]))
    return Condition(name, seeds, *map(list, zip(*found)))


def title(name):
    """"method/form" as a figure shows it."""
    method, form = name.split("/")
    return method if form == "raw" else f"{method}, {form}"


def kind_of(document):
    """Kind and word order of a matched document; statements have one order."""
    return document["kind"] if document["kind"] == "statement" else f"{document['kind']}, {document['order']}"


def wins_by_kind(where, cases, names):
    """{method/form: {kind: (share, standard error)}}: how often a relevant document outranks a candidate of a kind that is not."""
    documents = [cases[seed].bed.corpus.documents for seed in where.seeds]
    kinds = sorted({kind_of(d) for known in documents for d in known if d["kind"] not in ("statement", "filler")},
                   key=lambda kind: ("subject first" in kind, kind))
    return {name: {kind: _share(where, documents, name, kind) for kind in kinds} for name in names}


def _share(where, documents, name, kind):
    found = [metrics.wins(table[name], own, [[n for n in few if kind_of(known[n]) == kind] for few in candidates])
             for table, own, candidates, known in zip(where.tables, where.relevant, where.candidates, documents)]
    found = np.concatenate(found)
    return metrics.mean_and_error(found[~np.isnan(found)])


def drops_by_kind(effects, corpora):
    """{kind: ((mean drop [nats], standard error over documents), share that is causal)} of `causal.Effects` {seed: …}."""
    drops, causes = {}, {}
    for seed, found in effects.items():
        for row, drop, own in zip(corpora[seed].queries, found.drop, found.causal):
            for n, value in zip(row["candidates"], drop):
                kind = kind_of(corpora[seed].documents[n])
                drops.setdefault(kind, []).append(float(value))
                causes.setdefault(kind, []).append(n in own)
    order = sorted(drops, key=lambda kind: (kind != "statement", "object first" in kind, kind))
    return {kind: (metrics.mean_and_error(drops[kind]), float(np.mean(causes[kind]))) for kind in order}

