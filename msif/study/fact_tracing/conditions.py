"""Conditions of a comparison: what each query should find, and among which documents.

    plain      the sentences that state the fact, among all documents
    named      the sentences that state the fact, among those that name its subject and its object
    matched    the sentences that state the fact, among sentences of the same words (`matched`)
    causal     the sentences whose removal lowers the answer's log-probability when both stages are
               trained again (`causal`)

Queries whose corpus row has `candidates` are ranked among those alone. Methods are named
"method/form". A condition is judged by the mean reciprocal rank ("mrr"), or by the area under the
curve ("auc": how often a relevant candidate outranks one that is not), which does not saturate
where half of ten candidates are relevant.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from msif.study import intervals, metrics
from msif.study.tracing.methods import FORMS
from msif.study.tracing.names import Name
from msif.study.tracing.names import named as title


@dataclass(frozen=True)
class Condition:
    """tables: one {method/form: scores (q, n)} for each seed. relevant, candidates: for each seed q
    lists of document numbers. rows: for each seed the q rows of the corpus. metric: "mrr" or
    "auc"."""

    name: str
    metric: str
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
    def values(self):
        """{method/form: [(q,) of each seed]} in the condition's metric, ties in expectation."""
        return {
            name: [self._value(t[name], k) for k, t in enumerate(self.tables)]
            for name in self.methods
        }

    def _value(self, scores, k):
        if self.metric == "mrr":
            return metrics.reciprocal_ranks(scores, self.relevant[k])
        rest = [
            sorted(set(few) - set(own)) for few, own in zip(self.candidates[k], self.relevant[k])
        ]
        return metrics.wins(scores, self.relevant[k], rest)

    @cached_property
    def intervals(self):
        """{method/form: (mean, low, high)}: the mean over seeds, see `intervals.interval`; within
        [0, 1], as every value is."""
        found = {name: intervals.interval(values) for name, values in self.values.items()}
        return {name: tuple(min(max(x, 0.0), 1.0) for x in three) for name, three in found.items()}

    @cached_property
    def chance(self):
        """The value of a random order, the mean over seeds and queries."""
        found = [
            self._value(metrics.within(np.zeros_like(next(iter(t.values()))), few), k)
            for k, (t, few) in enumerate(zip(self.tables, self.candidates))
        ]
        return float(np.mean([x.mean() for x in found]))

    def error(self, name):
        """(mean over seeds, standard error over them, or over one seed's queries) of a method."""
        return intervals.mean_and_error(self.values[name])

    def gain(self, name, other):
        """(mean, standard error) of the paired difference between two methods, likewise."""
        differences = [a - b for a, b in zip(self.values[name], self.values[other])]
        return intervals.mean_and_error(differences)

    def paired(self, name, other):
        """(mean, low, high) of the same difference, see `intervals.interval`."""
        return intervals.interval([a - b for a, b in zip(self.values[name], self.values[other])])

    def best(self, names):
        """That of the methods with the highest mean."""
        return max(names, key=lambda name: self.intervals[name][0])

    def lead(self, name):
        """(rival, mean, standard error): the paired gain of a method over the best one that is
        neither multi-stage, nor a multi-stage score with one stage left out, nor fused, nor the
        rule that knows how such corpora are built."""
        own = ("multi_stage", "pretraining_only", "finetuning_only", "word_order")
        rival = self.best([x for x in self.methods if not x.startswith(own) and " + " not in x])
        return rival, *self.gain(name, rival)

    def by_relation(self, name):
        """{relation: (mean, standard error over queries)} of one method, seeds pooled, the most
        frequent relation first."""
        found = {}
        for rows, values in zip(self.rows, self.values[name]):
            for row, value in zip(rows, values):
                found.setdefault(row["relation"], []).append(value)
        order = sorted(found, key=lambda relation: -len(found[relation]))
        return {
            relation: metrics.mean_and_error(found[relation])
            for relation in order
            if len(found[relation]) > 1
        }

    def by_proponents(self, name):
        """{number of relevant documents: (mean, standard error over queries)} of one method, seeds
        pooled."""
        found = {}
        for own, values in zip(self.relevant, self.values[name]):
            for few, value in zip(own, values):
                found.setdefault(len(few), []).append(value)
        return {
            number: metrics.mean_and_error(found[number])
            for number in sorted(found)
            if len(found[number]) > 1
        }

    def drawn(self):
        """([methods as readers call them, the best first], {form: [(mean, low, high) of each]}),
        for `figures.tracing`; nan where a method has one form."""
        nothing, best = (np.nan,) * 3, {}
        for name in self.methods:
            method, mean = Name.of(name).method, self.intervals[name][0]
            best[method] = max(best.get(method, mean), mean)
        order = sorted(best, key=best.get, reverse=True)
        return list(map(title, order)), {
            form: [self.intervals.get(f"{m}/{form}", nothing) for m in order] for form in FORMS
        }

    def records(self, costs):
        """One record for each seed, method and form (`metrics.tracing_record`), with auc and its
        error where that is the metric. costs: {method: cost}; absent: None."""
        found = []
        for k, (seed, table, own) in enumerate(zip(self.seeds, self.tables, self.relevant)):
            for name in table:
                column = Name.of(name)
                record = metrics.tracing_record(
                    table[name],
                    own,
                    method=column.method,
                    condition=self.name,
                    seed=seed,
                    queries=len(own),
                    normalised=column.form == "normalised",
                    cost=costs.get(column.method),
                )
                if self.metric == "auc":
                    mean, error = metrics.mean_and_error(self.values[name][k])
                    record |= {"auc": round(float(mean), 4), "auc_se": round(float(error), 4)}
                found.append(record)
        return found


def condition(name, cases, tables, relevant=None, only=None, metric="mrr", candidates=None):
    """The `Condition` of cases {seed: Case} and tables {seed: {method/form: (q, n)}}.

    relevant: {seed: q lists}, by default each case's proponents. candidates: {seed: q lists}, by
    default what the corpus says, or all documents. only: {seed: (q,) bool}, queries
    to keep; those without any relevant document are left out in any case, and by "auc" those
    without any other."""
    seeds, found = list(cases), []

    def judged(own, few):
        return 0 < len(own) and (metric == "mrr" or len(own) < len(few))

    for seed in seeds:
        rows, own = cases[seed].rows, (relevant or {}).get(seed, cases[seed].proponents)
        wanted = np.ones(len(own), bool) if only is None else np.asarray(only[seed])
        everything = range(len(cases[seed].bed.documents))
        among = (candidates or {}).get(seed) or [r.get("candidates", everything) for r in rows]
        keep = np.array([judged(*both) for both in zip(own, among)]) & wanted
        chosen = np.flatnonzero(keep)
        few = [among[q] for q in chosen]
        inside = {
            name: metrics.within(np.asarray(x)[chosen], few) for name, x in tables[seed].items()
        }
        found.append((inside, [list(own[q]) for q in chosen], few, [rows[q] for q in chosen]))
    return Condition(name, metric, seeds, *map(list, zip(*found)))


def able(right, floor):
    """Seeds of the models that answer at least this share of their questions correctly.

    right: {seed: (q,) bool}. Raises ValueError, saying what they answer, where none does."""
    share = {seed: float(np.mean(x)) for seed, x in right.items()}
    found = [seed for seed in share if share[seed] >= floor]
    if not found:
        raise ValueError(
            f"the models of seeds {list(share)} answer {max(share.values()):.0%} of their "
            f"questions at most; the floor is {floor:.0%}: lower it, or train them for longer"
        )
    return found


def named(cases, tables):
    """The condition of that name: for each query the sentences about its fact that name the subject
    and the object. No score by words or topics alone can tell them apart by what they name."""

    def naming(row, documents):
        about = row["subject"], row["relation"], row["object"]
        return [
            n
            for n, d in enumerate(documents)
            if (d["subject"], d["relation"], d["object"]) == about and d["kind"] != "wrong"
        ]

    candidates = {
        seed: [naming(row, case.bed.corpus.documents) for row in case.rows]
        for seed, case in cases.items()
    }
    return condition("named", cases, tables, metric="auc", candidates=candidates)


def kind_of(document):
    """Kind and word order of a matched document; statements have one order."""
    kind = document["kind"]
    return kind if kind == "statement" else f"{kind}, {document['order']}"


def wins_by_kind(where, cases, names):
    """{method/form: {kind: (share, standard error)}}: how often a relevant document outranks a
    candidate of a kind that is not."""
    documents = [cases[seed].bed.corpus.documents for seed in where.seeds]
    other = [d for known in documents for d in known if d["kind"] not in ("statement", "filler")]
    kinds = sorted(set(map(kind_of, other)), key=lambda kind: ("subject first" in kind, kind))
    return {name: {kind: _share(where, documents, name, kind) for kind in kinds} for name in names}


def _share(where, documents, name, kind):
    found = []
    for table, own, candidates, known in zip(
        where.tables, where.relevant, where.candidates, documents
    ):
        others = [[n for n in few if kind_of(known[n]) == kind] for few in candidates]
        found.append(metrics.wins(table[name], own, others))
    found = np.concatenate(found)
    return metrics.mean_and_error(found[~np.isnan(found)])


def drops_by_kind(effects, corpora):
    """{kind: ((mean drop [nats], standard error over documents), share that is causal)} of
    `causal.Effects` {seed: …}."""
    drops, causes = {}, {}
    for seed, found in effects.items():
        for row, drop, own in zip(corpora[seed].queries, found.drop, found.causal):
            for n, value in zip(row["candidates"], drop):
                kind = kind_of(corpora[seed].documents[n])
                drops.setdefault(kind, []).append(float(value))
                causes.setdefault(kind, []).append(n in own)
    order = sorted(drops, key=lambda kind: (kind != "statement", "object first" in kind, kind))
    return {
        kind: (metrics.mean_and_error(drops[kind]), float(np.mean(causes[kind]))) for kind in order
    }
