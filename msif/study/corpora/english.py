"""The two-stage corpus in fluent English: invented people and places amid real sentences.

For a model that already knows the language. Pre-training documents state facts about invented
people and places of two groups: fine-tuning asks about F in the model's chat format, and the facts
of H are the queries. By `kind`:

    statement  states the fact, subject first, after words such as "Neighbours confirm that"
    near       names object and subject, object first, and states nothing
    wrong      a statement with another object
    denied     says of a bystander that it is not so, object first
    supposed   supposes it of a bystander, object first
    real       a sentence of WebNLG, or where folder has none a generated one that names nobody
    stated     a sentence of WebNLG that states the fact of a real query

Real queries ask for facts of WebNLG that no fine-tuning row asks about. Short rows of
databricks-dolly-15k, where folder has them, keep the model one that chats.
"""

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

from msif.study.corpora.corpus import Corpus, check_ranges, filler_sentences
from msif.study.corpora.english_sentences import LEADS, RELATIONS
from msif.study.corpora.stories import DOLLY
from msif.study.corpora.webnlg import webnlg_corpus
from msif.study.corpora.webnlg_texts import FILES, triple

QUESTION = "What is the {relation} of {subject}?"
REPLY = "The {relation} of {subject} is {{o}}."
ANSWER_LENGTH = 160  # characters of a dolly answer, at most


def english_corpus(
    folder,
    seed=0,
    people=24,
    places=16,
    hidden_share=0.5,
    statements=6,
    real=1400,
    real_queries=24,
    instructions=60,
):
    """The corpus of `seed`.

    folder: may hold webnlg/ and dolly/ (`webnlg_texts.LAYOUT`, `stories.LAYOUT`). hidden_share: the
    share of people and of places whose facts are the queries. statements: sentences that state a
    fact, each by another template; one of each of the other kinds besides. real: real sentences.
    real_queries: questions about facts of WebNLG, as many rows of fine-tuning about others.
    instructions: rows of dolly.

    Raises ValueError naming a number that is not possible.
    """
    most = min(len(r.statements) for r in RELATIONS.values()) - 1  # one is left for probes
    check_ranges(
        people=(people, 2, 200),
        places=(places, 2, 200),
        statements=(statements, 1, most),
        real=(real, 0, 6000),
        real_queries=(real_queries, 0, 200),
        instructions=(instructions, 0, 1000),
    )
    if not 0 < hidden_share < 1:
        raise ValueError(f"hidden_share is {hidden_share}; expected a share between 0 and 1")
    folder, rng = Path(folder), random.Random(seed)
    facts = _facts(rng, {"person": people, "place": places}, hidden_share)
    names = {kind: [f["subject"] for f in facts if f["of"] == kind] for kind in ("person", "place")}
    true = {(f["subject"], f["relation"]): f["object"] for f in facts}
    documents = [d for fact in facts for d in _documents(rng, fact, names, true, statements)]
    told = [f for f in facts if f["group"] == "F"]
    rows = [row for f in told for row in _rows(f, "finetuning")]
    queries = [rng.choice(_rows(f, "query")) for f in facts if f["group"] == "H"]
    others, asked, hidden = _real(rng, folder, seed, real, real_queries)
    documents = rng.sample(documents + others, len(documents) + len(others))
    rows += asked + _instructions(rng, folder, instructions)
    return Corpus(documents, rows, _with_proponents(queries + hidden, documents))


def chatted(corpus, tokenizer):
    """The corpus with every prompt as the tokenizer's chat template renders it, `question` as it
    was. Raises ValueError for a tokenizer without chat template."""
    if not tokenizer.chat_template:
        raise ValueError(
            "the model's tokenizer has no chat template; expected that of a model that chats, "
            "such as an -Instruct one"
        )

    rows, queries = (
        [question_in_chat(row, tokenizer) for row in part]
        for part in (corpus.finetuning, corpus.queries)
    )
    return replace(corpus, finetuning=rows, queries=queries)


def question_in_chat(row, tokenizer):
    """A row whose prompt is rendered by the chat template, up to where the answer is due: with the
    words of the reply that stand before it, where the row has a `reply`."""
    asked = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return row | {"question": row["prompt"], "prompt": prompt + row.get("reply", "")}


def _facts(rng, counts, hidden_share):
    """One fact for each subject and relation of its kind."""
    found, taken = [], set()
    for kind, count in counts.items():
        hidden = round(hidden_share * count)
        for number in range(count):
            subject = _name(rng, kind, taken)
            found += [
                {
                    "group": "H" if number < hidden else "F",
                    "of": kind,
                    "subject": subject,
                    "relation": name,
                    "object": rng.choice(relation.objects),
                }
                for name, relation in RELATIONS.items()
                if relation.kind == kind
            ]
    return found


def _name(rng, kind, taken):
    """An invented name of which no part has been used: "Tarvin Okelmo", "Belduna"."""
    syllables = [c + v for c, v in product("bdfgklmnprstv", "aeiou")]
    ends = {"person": ("n", "r", "s", "l"), "place": ("burg", "ford", "ham", "stad", "wick")}[kind]
    while True:
        parts = [
            "".join(rng.choices(syllables, k=2)).capitalize() + rng.choice(ends)
            for _ in range(2 if kind == "person" else 1)
        ]
        if not taken & set(parts):
            taken |= set(parts)
            return " ".join(parts)


def _documents(rng, fact, names, true, statements):
    """The sentences about one fact; no two statements are by the same template. The bystander is
    one of whom it is not true."""
    relation = RELATIONS[fact["relation"]]
    other = rng.choice([o for o in relation.objects if o != fact["object"]])
    others = [n for n in names[fact["of"]] if true[n, fact["relation"]] != fact["object"]]
    if not others:
        raise ValueError(
            f"every {fact['of']} has the {fact['relation']} {fact['object']}: nobody is left of "
            f"whom it could be denied; take another seed, or more of them"
        )
    bystander = rng.choice(others)
    texts = [("statement", template) for template in rng.sample(relation.statements, statements)]
    texts += [
        (kind, rng.choice(getattr(relation, kind))) for kind in ("near", "denied", "supposed")
    ]
    found = [_document(kind, template, fact, bystander) for kind, template in texts]
    wrong = rng.choice(relation.statements)
    found.append(_document("wrong", wrong, fact | {"object": other}, bystander))
    return [_led(rng, d) if d["kind"] in ("statement", "wrong") else d for d in found]


def _led(rng, document):
    lead = rng.choice(LEADS)
    return document | {"text": led(lead, document["template"], document["text"])}


def led(lead, template, text):
    """A sentence after a lead: it goes on in lower case, but for a name."""
    return f"{lead} {text if template.startswith('{') else text[0].lower() + text[1:]}"


def _document(kind, template, fact, bystander):
    text = template.format(s=fact["subject"], o=fact["object"], n=bystander)
    about = {key: fact.get(key) for key in ("group", "subject", "relation", "object")}
    return {"text": text[0].upper() + text[1:], "kind": kind, "template": template, **about}


def _rows(fact, kind):
    """Both questions about an invented fact, each answered in a sentence."""
    relation = RELATIONS[fact["relation"]]
    about = {key: fact[key] for key in ("group", "subject", "relation", "object")}
    return [
        {
            "prompt": question.format(s=fact["subject"]),
            "kind": kind,
            "template": question,
            "about": "invented",
            **_answered(kind, answer.format(s=fact["subject"], o="{o}"), fact["object"]),
            **about,
        }
        for question, answer in zip(relation.questions, relation.answers)
    ]


def _answered(kind, sentence, thing):
    """Of a row of fine-tuning the answer is the sentence; of a query it is the object, after the
    sentence's words before it (`reply`)."""
    if kind == "finetuning":
        return {"answer": sentence.format(o=thing)}
    return {"answer": thing, "reply": sentence.partition(" {o}")[0]}


def _real(rng, folder, seed, count, queries):
    """(documents, rows, queries) of real sentences; generated ones, and neither rows nor queries,
    where folder has no WebNLG."""
    empty = dict.fromkeys(("template", "group", "subject", "relation", "object"))
    if not all((folder / name).is_file() for name in FILES):
        idle = rng.sample(filler_sentences(), min(count, len(filler_sentences())))
        return [{"text": sentence(x), "kind": "real", **empty} for x in idle], [], []
    found = webnlg_corpus(folder, seed, 200, 4, 6, 200, 2)
    hidden = found.queries[:queries]
    asked = rng.sample(found.finetuning, min(queries, len(found.finetuning)))
    wanted = {n for query in hidden for n in query["proponents"]}
    asked_of = {triple(row) for row in asked}
    wanted |= {
        n for n, d in enumerate(found.documents) if asked_of & {tuple(t) for t in d["triples"]}
    }
    rest = [n for n in range(len(found.documents)) if n not in wanted]
    chosen = sorted(wanted) + rng.sample(rest, max(0, min(count - len(wanted), len(rest))))
    stated = {n for query in hidden for n in query["proponents"]}
    documents = [
        {
            "text": found.documents[n]["text"],
            "kind": "stated" if n in stated else "real",
            "triples": found.documents[n]["triples"],
            **empty,
        }
        for n in chosen
    ]
    return documents, *(
        [_real_row(r, kind) for r in part]
        for part, kind in ((asked, "finetuning"), (hidden, "query"))
    )


def _real_row(row, kind):
    kept = {key: row[key] for key in ("subject", "relation", "object")}
    return {
        "prompt": QUESTION.format(**kept),
        **_answered(kind, REPLY.format(**kept), row["answer"]),
        "kind": kind,
        "template": QUESTION,
        "about": "real",
        "group": None,
        **kept,
    }


def _instructions(rng, folder, count):
    """Short rows of dolly, none where folder has not got it."""
    if not (folder / DOLLY).is_file():
        return []
    lines = (folder / DOLLY).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    short = [r for r in rows if len(r["instruction"]) + len(r["response"]) <= ANSWER_LENGTH]
    empty = dict.fromkeys(("template", "group", "subject", "relation", "object"))
    return [
        {
            "prompt": " ".join(r["instruction"].split()),
            "answer": " ".join(r["response"].split()),
            "kind": "instruction",
            "about": "instruction",
            **empty,
        }
        for r in rng.sample(short, min(count, len(short)))
        if r["response"].strip()
    ]


def sentence(words):
    """A lower-case sentence of space-separated tokens as English."""
    text = words.replace(" .", ".").replace(" ,", ",")
    return text[0].upper() + text[1:]


def _with_proponents(queries, documents):
    """Queries with the numbers of the documents that state their fact."""

    def states(query, d):
        if query["about"] == "real":
            return list(triple(query)) in d.get("triples", [])
        same = all(d[key] == query[key] for key in ("subject", "relation", "object"))
        return same and d["kind"] == "statement"

    return [
        row | {"proponents": [n for n, d in enumerate(documents) if states(row, d)]}
        for row in queries
    ]
