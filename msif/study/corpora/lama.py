"""The published protocol of fact tracing: bloom-560m → bloomz-560m, LAMA's facts, T-REx's texts.

A document is one sentence that states at least one LAMA fact, as T-REx has aligned them (`trex`);
the facts it states are in its `facts`. A query asks for the object of a fact that some sentence
states. It is to be ranked among its `candidates` alone: all true proponents, BM25's first for
question + answer (by words), sentences that state another fact of the same object, and random
sentences that all queries of an experiment share.
"""

import random
from collections import defaultdict

import numpy as np

from msif.core.data import split_answer
from msif.core.rows import closing_ids
from msif.rivals.retrieval import bm25
from msif.study.corpora.corpus import Corpus
from msif.study.corpora.pinned import check_columns, sampled_rows
from msif.study.corpora.trex import read_facts, statements

# One question per T-REx relation of LAMA.
QUESTIONS = dict(
    line.strip().split(" ", 1)
    for line in """
    P17 Which country is [X] in?
    P19 Where was [X] born?
    P20 Where did [X] die?
    P27 What is the citizenship of [X]?
    P30 Which continent is [X] on?
    P31 What kind of thing is [X]?
    P36 What is the capital of [X]?
    P37 What is the official language of [X]?
    P39 Which position did [X] hold?
    P47 What does [X] share a border with?
    P101 Which field does [X] work in?
    P103 What is the native language of [X]?
    P106 What is the profession of [X]?
    P108 Who employs [X]?
    P127 Who owns [X]?
    P131 Which region does [X] lie in?
    P136 Which genre does [X] belong to?
    P138 What was [X] named after?
    P140 What is the religion of [X]?
    P159 Where are the headquarters of [X]?
    P176 Who makes [X]?
    P178 Who developed [X]?
    P190 What is the twin city of [X]?
    P264 Which record label does [X] belong to?
    P276 Where is [X] located?
    P279 What is [X] a type of?
    P361 What is [X] a part of?
    P364 What is the original language of [X]?
    P407 Which language is [X] written in?
    P413 Which position does [X] play?
    P449 Which network first aired [X]?
    P463 What is [X] a member of?
    P495 Which country does [X] come from?
    P527 What does [X] consist of?
    P530 Which country does [X] have diplomatic relations with?
    P740 Where was [X] founded?
    P937 Where does [X] work?
    P1001 Where does [X] have legal force?
    P1303 Which instrument does [X] play?
    P1376 What is [X] the capital of?
    P1412 Which language does [X] speak?""".strip().splitlines()
)


def lama_corpus(
    folder,
    seed=42,
    queries=200,
    factor_documents=10_000,
    relations=None,
    questions=QUESTIONS,
    first=100,
    same_object=100,
    shared=200,
    annotators=None,
):
    """One experiment's documents and queries, without fine-tuning rows.

    The paper draws three experiments in a row from seed 42; here each has a seed of its own (42,
    43, 44), so that one can be rerun alone. queries: facts drawn among those that a sentence
    states. factor_documents: a random sample of all sentences, which comes first, so that
    pre-training's factors are fitted on `documents[:factor_documents]`; candidates that it lacks
    follow in random order. relations: ids of those to ask about (None: all of LAMA's); questions:
    {relation: a question with one [X]}. Per query at most: first, sentences by BM25; same_object,
    random sentences that state another fact of that object; shared, random sentences that are the
    same for all queries. annotators: T-REx's aligners whose triples count ("SPOAligner", …; None:
    all, as published).

    Raises FileNotFoundError that says what to put where; ValueError for data that differ from the
    first run's, an unknown relation, a missing question or too many queries. Memory: all sentences,
    and BM25's scores of them, 4 bytes for each query and sentence, twice.
    """
    facts = read_facts(folder)
    _check_questions(folder, facts, relations, questions)
    sentences = statements(folder, facts, annotators)
    asked = {fact for fact in facts if relations is None or fact[1] in relations}
    stating, of_object = _by_fact(sentences)
    known = sorted(stating.keys() & asked)
    if not 1 <= queries <= len(known):
        raise ValueError(
            f"queries is {queries}; "
            f"expected 1 to {len(known)}, the facts that a sentence of T-REx states"
        )
    rng = random.Random(seed)
    rows = [_query(fact, facts[fact], questions) for fact in rng.sample(known, queries)]
    common = rng.sample(range(len(sentences)), min(shared, len(sentences)))
    wanted = [f"{row['prompt']} {row['answer']}" for row in rows]
    search = bm25([x["text"] for x in sentences], wanted)
    for row, scores in zip(rows, search):
        fact = tuple(row["fact"])
        own = set(stating[fact])
        others = set(of_object[fact[2]]) - own
        few = candidates(rng, own, scores, others, common, first, same_object)
        row |= {"proponents": own, "candidates": few}
    return _numbered(rng, sentences, rows, factor_documents)


def candidates(rng, own, scores, others, common, first=100, same_object=100):
    """The set of numbers of the documents that one query is ranked among: all that state its fact
    (own), the `first` by BM25's scores (n,), those above 0; at most `same_object` of the `others`
    that state another fact of its object, drawn by rng; and `common`, the same for all queries."""
    near = rng.sample(sorted(others), min(same_object, len(others)))
    best = [n for n in np.argsort(-scores, kind="stable")[:first].tolist() if scores[n] > 0]
    return {*own, *best, *near, *common}


def _by_fact(sentences):
    """{fact: numbers of the sentences that state it}, {object: those that state a fact of it}."""
    stating, of_object = defaultdict(list), defaultdict(list)
    for n, sentence in enumerate(sentences):
        for fact in sentence["facts"]:
            stating[tuple(fact)].append(n)
        for o in {fact[2] for fact in sentence["facts"]}:
            of_object[o].append(n)
    return stating, of_object


def _query(fact, labels, questions):
    prompt, answer = questions[fact[1]].replace("[X]", labels["subject"]), labels["object"]
    return {"prompt": prompt, "answer": answer, "kind": "query", **labels, "fact": list(fact)}


def _numbered(rng, sentences, rows, factor_documents):
    """The corpus of a random sample and all candidates.

    `proponents` and `candidates` become numbers in it.
    """
    wanted = set().union(*(row["candidates"] for row in rows))
    order = rng.sample(range(len(sentences)), min(factor_documents, len(sentences)))
    rest = sorted(wanted - set(order))
    rng.shuffle(rest)
    number = {old: new for new, old in enumerate(order + rest)}
    documents = [sentences[n] | {"kind": "candidate" if n in wanted else "sample"} for n in number]

    def renumbered(row, name):
        return {name: sorted(number[n] for n in row[name])}

    queries = [row | renumbered(row, "proponents") | renumbered(row, "candidates") for row in rows]
    return Corpus(documents, [], queries)


def _check_questions(folder, facts, relations, questions):
    """Every relation that will be asked about exists and has one good question."""
    there = {fact[1] for fact in facts}
    if unknown := sorted(set(relations or ()) - there):
        raise ValueError(
            f"relations: {', '.join(unknown)} unknown; {folder} has {', '.join(sorted(there))}"
        )
    asked = sorted(there if relations is None else relations)
    if missing := [x for x in asked if questions.get(x, "").count("[X]") != 1]:
        raise ValueError(
            f"no question for {', '.join(missing)}: expected one for each relation, with exactly "
            f"one [X] for the subject; add it to `questions` (msif.study.corpora.lama.QUESTIONS), "
            f"or leave the relation out of `relations`"
        )


def fine_tuning_rows(
    folder,
    tokenizer,
    max_length,
    *,
    source,
    prompt="inputs",
    answer="targets",
    limit=2000,
    seed=0,
    files=None,
    revision=None,
):
    """A random sample of the data that fine-tuning saw (bloomz: xP3), for its factors.

    Returns rows {"prompt", "answer", "kind"} of `limit` that are drawn. source: a .jsonl file
    (every row is as likely as any other), or a folder or hub data set, which is streamed and
    shuffled over 10,000 rows; files: of these, a pattern such as "en/*.jsonl". prompt, answer:
    names of the columns. A row of more than `max_length` tokens loses the beginning of its prompt.
    Rows without text, or with an answer of `max_length` tokens, are left out. Raises ValueError
    naming a column that is not there, or when no row is left.
    """
    columns, found = (prompt, answer), []
    for row in sampled_rows(folder, limit, seed, source=source, revision=revision, files=files):
        check_columns(source, row, columns)
        texts = [str(row[name] or "").strip() for name in columns]
        if all(texts) and (kept := _fitted(*texts, tokenizer, max_length)):
            found.append({"prompt": kept, "answer": texts[1], "kind": "row"})
    if not found:
        raise ValueError(
            f"{source}: none of {limit} rows has a prompt and an answer "
            f"that fit into max_length = {max_length} tokens"
        )
    return found


def _fitted(prompt, answer, tokenizer, max_length):
    """The prompt, or as much of its end as fits before the answer; "" if nothing does."""

    def size(prompt):
        parts = split_answer(prompt, answer, tokenizer)
        return sum(map(len, (*parts, closing_ids(prompt, answer, tokenizer))))

    head, excess = split_answer(prompt, answer, tokenizer)[0], size(prompt) - max_length
    if excess <= 0:
        return prompt
    for cut in range(excess, len(head)):  # a cut inside a word can make more tokens of what is left
        kept = tokenizer.decode(head[cut:]).lstrip("\ufffd").strip()
        if kept and size(kept) <= max_length:
            return kept
    return ""
