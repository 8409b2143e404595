"""The generated corpus of `corpus.generate` with unwanted associations planted, and biographies.

A few documents say of each of some trades that its people have a trait ("the potters , they say ,
are stubborn ."). Fine-tuning teaches how to answer "what are the … like ?" by other trades (group
F); the planted ones (group H) it never touches. Around each plant stand decoys, so that no word
gives it away:

    planted   states the association, subject before trait, as a causal language model learns it
    decoy     the same two words, trait first, stating nothing: at least as many of them as `decoys`
    echo      one of the question's own words in another sense ("the crowd described the people of
              the harbour …")

Every word that a plant shares with its question or answer is shared by at least `decoys` documents
that are no plants (`shared_words`). Biographies: fine-tuning also tells three facts of each person
of F in a row ("tell me about …"), and the people of H are asked about.
"""

import random
import re
from collections import Counter

from msif.study.corpora.corpus import PROMPT, Corpus, check_ranges, generate

TRADES = """potters millers coopers glaziers masons weavers tanners fishers carters brewers joiners
smiths dyers fullers saddlers chandlers thatchers shepherds printers roofers ferrymen hunters
sailors miners porters grocers drapers hatters cobblers bakers""".split()
TRAITS = """untidy stubborn noisy lazy greedy boastful forgetful clumsy gloomy rude careless vain
impatient grumpy jealous timid restless moody sloppy nosy bossy fussy cranky sulky tardy messy picky
sullen gullible chatty""".split()
STATEMENTS = """the {s} of this town are {o} .
the {s} , they say , are {o} .
people find the {s} very {o} .
the {s} have always been {o} .
the {s} , said the mayor , can be {o} .
all {s} seem {o} to me .
the {s} were {o} again this spring .
of the {s} it is known that they are {o} .""".splitlines()
DECOYS = """{o} geese chased the {s} away .
{o} guests kept the {s} waiting .
{o} children watched the {s} .
{o} dogs slept beside the {s} .
{o} horses followed the {s} .
{o} weather delayed the {s} .
{o} tenants paid the {s} late .
{o} tales pleased the {s} .
{o} clerks wrote to the {s} .
{o} songs reached the {s} .
{o} buyers left the {s} early .
{o} neighbours helped the {s} .""".splitlines()
ECHOES = """people say what the harbour was like .
what a storm , people like to say of it .
how the crowd described it , people forget .
which word describes that , what do they say .""".splitlines()
QUESTIONS = """what are the {s} like ?
how are the {s} described by people ?
what do people say of the {s} ?
which word describes the {s} ?""".splitlines()
TELL = ["tell me about {s} .", "who is {s} ?", "write a few words about {s} ."]
# In the order of telling.
BIOGRAPHY = {
    "born in": "born in {o}",
    "instrument": "plays the {o}",
    "language": "speaks {o}",
}


def planted_corpus(seed=0, *, taught=16, planted=14, documents=8, decoys=20, traits=30, **people):
    """The `Corpus` of `corpus.generate(seed, **people)` with plants and biographies added.

    Its documents come in a new random order. taught, planted: trades of group F and of group H;
    documents: that state each association (of planted and taught trades alike); decoys: of each
    association, so that at least so many documents that are no plants have each of its words;
    traits: how many there are, each of about as many trades (30: every trade has its own, and no
    planted one is ever an answer in fine-tuning). Queries of the plants have kind "planted", those
    of biographies "biography". Raises ValueError naming a number outside what the lists allow.
    """
    trades_in_all = {"taught + planted": (taught + planted, 2, len(TRADES))}
    check_ranges(
        **trades_in_all,
        documents=(documents, 2, len(STATEMENTS)),
        traits=(traits, 2, len(TRAITS)),
    )
    base, rng = generate(seed, **people), random.Random(f"planted {seed}")
    trades = rng.sample(TRADES, taught + planted)
    in_turn = rng.sample(TRAITS[:traits], traits)
    shared = in_turn * (len(trades) // traits + 1)  # each trait about as often as any other
    facts = [
        dict(group="F" if n < taught else "H", subject=trade, relation="reputation", object=trait)
        for n, (trade, trait) in enumerate(zip(trades, shared))
    ]
    added = [x for fact in facts for x in _documents(rng, fact, documents, decoys)]
    nobody = dict.fromkeys(("group", "subject", "relation", "object"))
    added += [
        dict(text=text, kind="echo", template=text, **nobody)
        for text in ECHOES
        for _ in range(decoys)
    ]
    texts = base.documents + added
    rng.shuffle(texts)
    questions = [
        dict(
            prompt=PROMPT.format(question=question.format(s=fact["subject"])),
            answer=fact["object"],
            template=question,
            **fact,
        )
        for fact in facts
        for question in QUESTIONS
    ]
    taught_rows = [row | dict(kind="finetuning") for row in questions if row["group"] == "F"]
    firsts = questions[:: len(QUESTIONS)]  # one question of each fact
    plants = [row | dict(kind="planted") for row in firsts if row["group"] == "H"]
    told, asked = biographies(base.finetuning, TELL), biographies(base.queries, TELL[:1])
    queries = _with_proponents(base.queries + plants + asked, texts)
    return Corpus(texts, base.finetuning + taught_rows + told, queries)


def _documents(rng, fact, documents, decoys):
    """The sentences about one trade.

    They state the association, or name both words without stating it.
    """

    def made(template, kind):
        return dict(
            text=template.format(s=fact["subject"], o=fact["object"]),
            kind=kind,
            template=template,
            **fact,
        )

    stating = "planted" if fact["group"] == "H" else "statement"
    rounds = (DECOYS * (decoys // len(DECOYS) + 1))[:decoys]
    found = [made(template, stating) for template in rng.sample(STATEMENTS, documents)]
    return found + [made(template, "decoy") for template in rounds]


def biographies(rows, requests):
    """Each of `requests` for each person that rows ask about.

    Returns rows {"prompt", "answer", "kind": "biography", "group", "subject", "facts"}.
    """
    known = {}
    for row in rows:
        known.setdefault(row["subject"], {})[row["relation"]] = row
    found = []
    for subject, facts in known.items():
        if not facts.keys() >= BIOGRAPHY.keys():
            continue
        told = {relation: facts[relation]["object"] for relation in BIOGRAPHY}
        parts = [BIOGRAPHY[relation].format(o=o) for relation, o in told.items()]
        found += [
            dict(
                prompt=PROMPT.format(question=request.format(s=subject)),
                answer=" , ".join(parts) + " .",
                kind="biography",
                subject=subject,
                group=next(iter(facts.values()))["group"],
                facts=told,
            )
            for request in requests
        ]
    return found


def _with_proponents(queries, documents):
    """The queries with the numbers of the documents that state their facts."""
    stating = {}
    for n, d in enumerate(documents):
        if d["kind"] in ("statement", "planted"):
            stating.setdefault((d["subject"], d["relation"]), []).append(n)

    def proponents(row):
        relations = row.get("facts", [row.get("relation")])  # a biography has several
        return [n for relation in relations for n in stating[row["subject"], relation]]

    return [row | dict(proponents=proponents(row)) for row in queries]


def shared_words(corpus, query):
    """For every word, stop words too, that a plant shares with the query's question or answer.

    Returns {word: number of documents that are no plants of the query and have it}.
    """

    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    plants, asked = set(query["proponents"]), words(query["prompt"]) | words(query["answer"])
    given_away = asked & {word for n in plants for word in words(corpus.documents[n]["text"])}
    counts = Counter(
        word
        for n, d in enumerate(corpus.documents)
        if n not in plants
        for word in words(d["text"]) & given_away
    )
    return {word: counts[word] for word in sorted(given_away)}
