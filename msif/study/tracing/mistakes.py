"""What does the score trace when the model errs? Its own answer, right or wrong, is measured.

f = log p(the model's own greedy answer) at θ₂. A document among the highest is counted by what it
says about the subject s, the relation r and the answer o that the model gave:

    says so             s, r and o: states what the model answered
    names both          s, r and o, without stating anything ("near" in the generated corpora,
                        denied or supposed of somebody else)
    another object      s and r with another object
    another relation    s, with another relation
    another subject     o of another subject
    neither             neither s nor o
"""

from dataclasses import dataclass

import numpy as np
import torch

from msif.core.data import encode_answers
from msif.study import metrics
from msif.study.beds.testbed import answers
from msif.study.tracing.methods import multi_stage

CLASSES = (
    "says so",
    "names both",
    "another object",
    "another relation",
    "another subject",
    "neither",
)
NAMING = ("near", "denied", "supposed")  # kinds that name subject and object and state nothing


@dataclass(frozen=True)
class Answer:
    """The model's own answer to one query. shares: {class: part of the `top` documents}; base: the
    same of all documents."""

    text: str
    right: bool
    shares: dict
    base: dict


def traced(case, *, damping, alpha, known=None, top=10, batch_size=64, parts=1, title=None):
    """The `Answer`s to all queries of a case's corpus, traced by the normalised multi-stage score.

    known: those scores (q, n) of the case's queries, where they have been computed; other right
    answers, which would only cost, are then left out. None: all answers are traced.

    The corpus must name subject, relation and object of its documents, as the generated one does
    (ValueError otherwise). Answers without any text are left out."""
    bed = case.bed
    documents = bed.corpus.documents
    rows = [row for row in bed.corpus.queries if row.get("about") in (None, "invented")]
    if missing := {"subject", "relation", "object"} - set(documents[0]):
        raise ValueError(
            f"the corpus's documents lack {sorted(missing)}: what a document says of an answer is "
            "not known"
        )
    tuned = bed.model("finetuned")
    said_by_model = answers(tuned, bed.tokenizer, rows)
    given = [(row, text, right) for row, (text, right) in zip(rows, said_by_model) if text]
    queries = encode_answers(
        [row["prompt"] for row, *_ in given],
        [text for _, text, _ in given],
        bed.tokenizer,
        tuned.config.max_position_embeddings,
    )
    at = _same(case.queries, queries) if known is not None else {}
    if known is not None:
        kept = [n for n, (*_, right) in enumerate(given) if n in at or not right]
        given, queries = ([x[n] for n in kept] for x in (given, queries))
        at = _same(case.queries, queries)
    rest = [query for n, query in enumerate(queries) if n not in at]
    settings = {"parts": parts, "batch_size": batch_size, "title": title}
    scores = torch.empty(len(queries), len(documents))
    if rest:
        found = multi_stage(case, rest, bed.documents, damping, alpha, **settings)
        scores[[n for n in range(len(queries)) if n not in at]] = found.normalised().float()
    if at:
        scores[list(at)] = torch.as_tensor(known)[list(at.values())].float()
    best = scores.topk(top, dim=1).indices.tolist()
    classes = [
        [said(d, row["subject"], row["relation"], text) for d in documents]
        for row, text, _ in given
    ]
    return [
        Answer(text, right, _shares([row[n] for n in few]), _shares(row))
        for (_, text, right), row, few in zip(given, classes, best)
    ]


def _same(known, queries):
    """{number of a query: that of the same tokens among the known ones}."""
    numbers = {(q.input_ids, q.labels): n for n, q in enumerate(known)}
    keys = [(q.input_ids, q.labels) for q in queries]
    return {n: numbers[key] for n, key in enumerate(keys) if key in numbers}


def said(document, subject, relation, answer):
    """The class of one document, beside an answer about a subject."""
    if document["subject"] == subject:
        if document["relation"] != relation:
            return "another relation"
        if document["object"] != answer:
            return "another object"
        return "names both" if document["kind"] in NAMING else "says so"
    return "another subject" if document["object"] == answer else "neither"


def _shares(classes):
    return {name: classes.count(name) / len(classes) for name in CLASSES}


def summary(found):
    """{right or wrong: {class: (mean share, standard error over queries, mean base share)}}; a side
    without answers is left out."""

    def means(answers, name):
        share = metrics.mean_and_error([x.shares[name] for x in answers])
        return *share, np.mean([x.base[name] for x in answers])

    sides = {"right": [x for x in found if x.right], "wrong": [x for x in found if not x.right]}
    return {
        side: {name: means(few, name) for name in CLASSES} for side, few in sides.items() if few
    }
