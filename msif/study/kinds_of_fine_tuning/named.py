"""Which documents stand first, and which of them for one kind of fine-tuning alone."""

import numpy as np

CLASSES = (
    "states the fact",
    "another object for it",
    "names both, states nothing",
    "same person, another relation",
    "same object, another person",
    "the rest",
)


def top(scores, count=10):
    """The `count` documents of highest score of each query: q lists, highest first. scores: (q, n)
    tensor."""
    return scores.topk(count, dim=1).indices.tolist()


def shared(one, other):
    """The share of the documents of one list that are in the other, of each query: (q,)."""
    return np.array([len(set(a) & set(b)) / len(a) for a, b in zip(one, other, strict=True)])


def only(one, other):
    """What is in one list and not in the other, of each query: q lists."""
    return [[n for n in a if n not in set(b)] for a, b in zip(one, other, strict=True)]


def what(document, query):
    """Which of `CLASSES` a document of a generated corpus is, for a query."""
    same_person = document["subject"] == query["subject"]
    same_object = document["object"] == query["object"]
    if same_person and document["relation"] == query["relation"]:
        if document["kind"] == "near":
            return CLASSES[2]
        return CLASSES[0] if same_object else CLASSES[1]
    if same_person:
        return CLASSES[3]
    return CLASSES[4] if same_object else CLASSES[5]


def shares(lists, documents, queries):
    """{class: its share} of the documents in q lists."""
    found = [what(documents[n], row) for few, row in zip(lists, queries, strict=True) for n in few]
    return {name: found.count(name) / max(1, len(found)) for name in CLASSES}
