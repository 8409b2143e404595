"""The two-stage corpus of real sentences with annotated facts: WebNLG 1.6.

Pre-training documents are its texts, each annotated with the triples (subject, property, object)
that it states (`webnlg_texts`); fine-tuning asks about facts of some subjects, the queries
about facts of others: what the model answers there it has from pre-training. A query's proponents
are all documents annotated with its triple, whatever their words. Documents by `kind`, of the first
that fits:

    statement  states the fact of a query
    asked      states a fact that fine-tuning asks about
    other      states further facts about a subject or object of a query

Seen from one query, `relation_to` and `traps` say how a document that does not state its fact is
near to it.
"""

import random
from collections import Counter, defaultdict
from pathlib import Path

from msif.study.corpora.corpus import Corpus, check_ranges
from msif.study.corpora.webnlg_texts import LEAST, facts_of, place, read_texts, triple

PROMPT = "Q: what is the {relation} of {subject}? A:"
REPEATED = 4  # queries with the same property and answer, so that guessing does not pay


def webnlg_corpus(
    folder, seed=0, held_out=200, statements=6, documents_per_fact=12, others=400, triples=3
):
    """The corpus of `seed` from folder/webnlg.

    held_out: subjects whose facts are the queries; fine-tuning asks about those of all other
    subjects. A fact is asked about when its subject and property have one object, short, not told
    by the subject's name, and spelt alike in most texts; a query's property occurs in fine-tuning,
    too. statements: documents that state a query's fact, at least. documents_per_fact: texts chosen
    for each fact, at most (those chosen for other facts that state it come on top). others:
    documents of that kind, at most. triples: the most that a document states.

    Raises FileNotFoundError that says what to put where, ValueError naming a number that is not
    possible or a broken line.
    """
    folder, rng = Path(folder), random.Random(seed)
    check_ranges(
        statements=(statements, LEAST, 1000),
        triples=(triples, 1, 7),
        others=(others, 0, 100_000),
        documents_per_fact=(documents_per_fact, statements, 1000),
    )
    texts = read_texts(folder)
    facts = facts_of(texts, triples)
    worthy = [f for f in facts if len(f["texts"]) >= statements and f["forward"] >= LEAST]
    subjects = sorted({f["subject"] for f in worthy})
    if len(subjects) < 2:
        raise ValueError(
            f"statements is {statements}, and {len(subjects)} subjects have a fact that so many "
            f"texts state; expected fewer, so that there are some to ask about and some to hold out"
        )
    check_ranges(held_out=(held_out, 1, len(subjects) - 1))
    hidden = set(rng.sample(subjects, held_out))
    asked = [f for f in facts if not {f["subject"], f["object"], f["answer"]} & hidden]
    queried = _queried(rng, [f for f in worthy if f["subject"] in hidden], asked)
    if not queried:
        raise ValueError(
            f"held_out is {held_out}, and no fact of these subjects has a property that "
            f"fine-tuning asks about; expected fewer, of {len(subjects)} subjects"
        )
    numbers = _chosen(rng, texts, queried, asked, documents_per_fact, others, triples)
    kinds = {triple(f): "asked" for f in asked} | {triple(f): "statement" for f in queried}
    documents = [
        dict(
            text=row["text"],
            kind=_kind(row, kinds),
            category=row["category"],
            size=len(row["triples"]),
            triples=row["triples"],
            entry=row["entry"],
        )
        for row in (texts[n] for n in numbers)
    ]

    def stating(fact):
        return [n for n, d in enumerate(documents) if list(triple(fact)) in d["triples"]]

    finetuning = [_row(f, "finetuning") for f in asked]
    queries = [_row(f, "query", proponents=stating(f)) for f in queried]
    return Corpus(documents, finetuning, queries)


def relation_to(query, document):
    """How `document` is near to `query`, by its annotation.

    "states", or else the first that holds of "same subject", "same object" and "same property", or
    else "other". query, document: rows of a `webnlg_corpus`.
    """
    s, p, o = triple(query)
    found = document["triples"]
    checks = (
        ("states", [s, p, o] in found),
        ("same subject", any(t[0] == s for t in found)),
        ("same object", any(t[2] == o for t in found)),
        ("same property", any(t[1] == p for t in found)),
    )
    return next((name for name, holds in checks if holds), "other")


def traps(query, documents):
    """Numbers of the documents that name the query's subject and answer, but do not state its fact.

    Text search finds them.
    """
    return [
        n
        for n, d in enumerate(documents)
        if relation_to(query, d) != "states"
        and place(query["subject"], d["text"]) >= 0
        and place(query["answer"], d["text"]) >= 0
    ]


def chance(corpus):
    """Share of the queries that guessing gets right at best.

    It guesses the answer that is most frequent in fine-tuning for the query's property.
    """
    answers = defaultdict(Counter)
    for row in corpus.finetuning:
        answers[row["relation"]][row["answer"]] += 1
    best = {
        relation: min(found, key=lambda a: (-found[a], a)) for relation, found in answers.items()
    }
    right = sum(best.get(q["relation"]) == q["answer"] for q in corpus.queries)
    return right / len(corpus.queries)


def _queried(rng, facts, asked):
    """Of the hidden subjects' facts those of asked properties, in random order.

    No property and answer comes more than REPEATED times.
    """
    known, used = {f["relation"] for f in asked}, Counter()
    found = []
    for fact in rng.sample(facts, len(facts)):
        guess = fact["relation"], fact["answer"]
        used[guess] += 1
        if fact["relation"] in known and used[guess] <= REPEATED:
            found.append(fact)
    return found


def _chosen(rng, texts, queried, asked, per_fact, others, most):
    """Numbers of the documents, in random order."""
    chosen = set()
    for fact in queried + asked:
        free = [n for n in fact["texts"] if n not in chosen]
        lacking = max(0, per_fact - len(set(fact["texts"]) & chosen))
        chosen |= set(rng.sample(free, len(free))[:lacking])
    things = {x for f in queried for x in (f["subject"], f["object"])}
    facts = {triple(f) for f in queried + asked}

    def further(triples):
        about = any({t[0], t[2]} & things for t in triples)
        return about and not any(tuple(t) in facts for t in triples)

    short = [n for n, row in enumerate(texts) if len(row["triples"]) <= most]
    near = [n for n in short if further(texts[n]["triples"])]
    chosen |= set(rng.sample(near, min(others, len(near))))
    return rng.sample(sorted(chosen), len(chosen))


def _kind(row, kinds):
    found = {kinds.get(tuple(t)) for t in row["triples"]}
    return next((kind for kind in ("statement", "asked") if kind in found), "other")


def _row(fact, kind, **more):
    kept = {key: fact[key] for key in ("subject", "relation", "object", "category")}
    return dict(prompt=PROMPT.format(**kept), answer=fact["answer"], kind=kind, **kept, **more)
