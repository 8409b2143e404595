"""What the model says when the documents that are held responsible were never there.

Both stages are trained again without them, with new seeds, and asked the same questions. Several
answers are treated at once, each without its own documents, in groups in which no two share a
subject or an answer; every retraining is kept, so that a killed run goes on.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from msif.core.data import encode_answers
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.retraining import measured, side_by_side
from msif.study.beds.training import train


@dataclass(frozen=True)
class Absence:
    """What a retraining leaves out: numbers of pre-training documents, and of fine-tuning rows."""

    documents: tuple = ()
    rows: tuple = ()


@dataclass(frozen=True)
class Effect:
    """One kind of removal. before, after: (answers, seeds) probability of each answer; said:
    (answers, seeds) whether the model says it."""

    before: np.ndarray
    after: np.ndarray
    said_before: np.ndarray
    said_after: np.ndarray
    says: list  # [answer][seed]: what is said in its place

    @property
    def halved(self):
        """Is the answer's mean probability at most half of what it is without removal? (answers,)
        bool."""
        return self.after.mean(1) <= self.before.mean(1) / 2

    @property
    def flipped(self):
        """Does the model say another thing in more than half of the seeds in which it would have
        said the answer? (answers,) bool."""
        lost = (self.said_before & ~self.said_after).sum(1)
        return (lost > self.said_before.sum(1) / 2) & self.said_before.any(1)

    def part(self, which):
        """The effect on some of the answers. which: a slice."""
        return Effect(
            self.before[which],
            self.after[which],
            self.said_before[which],
            self.said_after[which],
            self.says[which],
        )

    @property
    def given(self):
        """Do most seeds say the answer without removal? (answers,) bool."""
        return self.said_before.mean(1) > 0.5

    @property
    def lost(self):
        """Flipped or halved: (answers,) bool."""
        return self.halved | self.flipped

    @property
    def share(self):
        """The share of answers that are lost, and its standard error (Agresti and Coull's, which no
        share makes 0)."""
        return _share(self.lost)

    @property
    def share_of_given(self):
        """The same of those answers alone that most seeds say without removal; nan where there are
        none."""
        return _share(self.lost[self.given])


def together(effects):
    """One `Effect` of the answers of several, which have as many seeds."""
    joined = {
        name: np.concatenate([getattr(x, name) for x in effects])
        for name in ("before", "after", "said_before", "said_after")
    }
    return Effect(**joined, says=[says for x in effects for says in x.says])


def _share(lost):
    n = len(lost)
    if not n:
        return float("nan"), float("nan")
    near = (lost.sum() + 2) / (n + 4)
    return float(lost.mean()), float(np.sqrt(near * (1 - near) / (n + 4)))


def retrained(recipe, absent, seed, state=None):
    """θ₂ after both stages without what is `absent`: it weighs 0 in the same batches.

    state: a folder that keeps what a killed training goes on from, until both are done."""
    tokenizer, net = testbed.start(recipe.corpus, recipe.model, seed)
    documents, rows, _ = testbed.encode(recipe.corpus, tokenizer, recipe.max_length)
    stages = {
        "pretraining": (documents, absent.documents, recipe.pretraining),
        "finetuning": (rows, absent.rows, recipe.finetuning),
    }
    for name, (sequences, without, settings) in stages.items():
        file = Path(state) / f"{name}.pt" if state else None
        weights = _weights(len(sequences), without)
        train(net, sequences, seed=seed, weights=weights, state=file, **settings)
    if state:
        shutil.rmtree(state, ignore_errors=True)
    return tokenizer, net


def _weights(count, absent):
    weights = torch.ones(count)
    weights[list(absent)] = 0
    return weights


def outcome(recipe, absent, seed, asked):
    """{"log_probability": of each answer, "says": the greedy answer} for rows `asked`
    ({"prompt", "answer"}) after one retraining; kept."""
    torch.set_num_threads(1)  # processes share the cores; and equal numbers on any machine

    def compute():
        with testbed.resumable(key) as state:
            tokenizer, net = retrained(recipe, absent, seed, state)
        prompts, answers = [row["prompt"] for row in asked], [row["answer"] for row in asked]
        queries = encode_answers(prompts, answers, tokenizer, recipe.max_length)
        return {
            "log_probability": measured(net, queries)["log_probability"].tolist(),
            "says": [text for text, _ in testbed.answers(net, tokenizer, asked)],
        }

    asked = [{"prompt": row["prompt"], "answer": row["answer"]} for row in asked]
    left_out = [sorted(absent.documents), sorted(absent.rows)]
    key = recipe.key() | {"absent": left_out, "seed": seed, "asked": asked}
    return scratch.value("counterfactual", key, compute)


def outcomes(recipe, absences, seeds, asked, processes=None, title="retraining"):
    """{name: [outcome of each seed]} for {name: Absence}; `processes` at once (None: all cores)."""
    jobs = {
        (name, seed): (recipe, absent, seed, asked)
        for name, absent in absences.items()
        for seed in seeds
    }
    found = side_by_side(outcome, jobs, processes, title)
    return {name: [found[name, seed] for seed in seeds] for name in absences}


def groups(rows, size):
    """Numbers of `rows` in groups of at most `size`, in order, no two of a group with the same
    subject or the same answer."""
    found = []
    for n, row in enumerate(rows):
        open_groups = (group for group in found if len(group) < size)
        home = next((few for few in open_groups if all(_apart(rows[m], row) for m in few)), None)
        if home is None:
            found.append(home := [])
        home.append(n)
    return found


def _apart(a, b):
    """Have the two rows different subjects and different answers?"""
    return a["answer"] != b["answer"] and a["subject"] != b["subject"]


def removal(recipe, rows, scores, *, top, together, seeds, processes=None):
    """{method: Effect} of leaving out the `top` documents of each of `rows` by each of `scores`
    ({method: (len(rows), N)}).

    "others' documents" is a control for the first of them: the same retrainings, each answer in one
    that left out documents of other answers alone, none about its subject or with its answer. It is
    not there where no group is such."""
    few = groups(rows, together)
    absences = {"nothing": Absence()}
    for method, values in scores.items():
        for g, group in enumerate(few):
            absences[method, g] = Absence(_top(values, group, top))
    found = outcomes(recipe, absences, seeds, rows, processes, "removal")
    home = {n: g for g, group in enumerate(few) for n in group}
    first = next(iter(scores))
    other = {n: stranger(rows, few, n) for n in home}
    where = {method: {n: (method, home[n]) for n in home} for method in scores}
    if all(g is not None for g in other.values()):
        where["others' documents"] = {n: (first, other[n]) for n in home}
    return {method: _effect(found, rows, at) for method, at in where.items()}


def stranger(rows, few, n):
    """The first group after the one of answer n in which nobody shares its subject or its answer;
    None if there is none."""
    own = next(g for g, group in enumerate(few) if n in group)
    after = [(own + step) % len(few) for step in range(1, len(few))]
    return next((g for g in after if all(_apart(rows[m], rows[n]) for m in few[g])), None)


def _effect(found, rows, at):
    """The `Effect` on each row n of the retrainings `at[n]`, beside those without removal."""

    def read(names, value):
        return np.array([[run[value][n] for run in found[names[n]]] for n in range(len(rows))])

    answer = np.array([[row["answer"]] for row in rows])
    before, after = ["nothing"] * len(rows), at
    says = read(after, "says")
    return Effect(
        np.exp(read(before, "log_probability")),
        np.exp(read(after, "log_probability")),
        read(before, "says") == answer,
        says == answer,
        says.tolist(),
    )


def _top(values, group, top):
    """The documents among the `top` highest of any query of the group."""
    best = [torch.as_tensor(values[row]).topk(top).indices.tolist() for row in group]
    return tuple(sorted(set().union(*best)))


def memory(recipe, rows, facts, *, seeds, processes=None):
    """{absence: (rows, seeds) probability} of answers without the fine-tuning rows that tell them,
    the documents that state them, or both.

    rows: {"prompt", "answer"}; facts: {"subject", "relation"}, whose documents and fine-tuning rows
    are left out, for all of them at once."""
    named = {(row["subject"], row["relation"]) for row in facts}

    def stated(document):
        told = document["kind"] in ("statement", "planted")
        return told and (document["subject"], document["relation"]) in named

    def asked(row):
        relations = row.get("facts", [row.get("relation")])  # a biography tells several facts
        return any((row.get("subject"), relation) in named for relation in relations)

    documents = tuple(n for n, d in enumerate(recipe.corpus.documents) if stated(d))
    own = tuple(n for n, row in enumerate(recipe.corpus.finetuning) if asked(row))
    absences = {
        "nothing": Absence(),
        "fine-tuning rows": Absence(rows=own),
        "documents": Absence(documents),
        "both": Absence(documents, own),
    }
    found = outcomes(recipe, absences, seeds, rows, processes, "memory")
    return {
        name: np.exp(np.array([run["log_probability"] for run in runs]).T)
        for name, runs in found.items()
    }
