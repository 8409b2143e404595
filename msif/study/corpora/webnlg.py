"""The two-stage corpus of real sentences with annotated facts: WebNLG 1.6, and a small model.

People wrote every text of WebNLG to state one to seven triples (subject, property, object).
Pre-training documents are such texts; fine-tuning asks about facts of some subjects, the queries
about facts of others: what the model answers there it has from pre-training. A query's proponents
are all documents annotated with its triple, whatever their words. Documents by `kind`, of the first
that fits:

    statement  states the fact of a query
    asked      states a fact that fine-tuning asks about
    other      states further facts about a subject or object of a query

Seen from one query, `relation_to` and `traps` say how a document that does not state its fact is
near to it. The model to start from is small, and made here (`start_model`).
"""

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from msif.core.models import tiny_gpt_neox
from msif.study import scratch
from msif.study.corpora.corpus import Corpus, check_ranges

FILES = [f"webnlg/{split}.jsonl" for split in ("train", "dev", "test")]
LAYOUT = f"""
    {", ".join(FILES)}: WebNLG 1.6, English, converted from the XML entries of
        data/v1.6/en in https://github.com/ThiagoCF05/webnlg to a {{"id", "category", "size", \
"triples":
        [[subject, property, object], ...], "texts": [text, ...]}} a line; CC BY-NC-SA 4.0"""
PROMPT = "Q: what is the {relation} of {subject}? A:"
# Texts that state an asked fact; of a query's, texts that name the subject before the object.
LEAST = 3
LETTERS, WORDS = 20, 3  # the most of an answer
VERBATIM = 0.6  # share of a fact's texts that hold the answer letter by letter
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
    facts = _facts(texts, triples)
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
    kinds = {_triple(f): "asked" for f in asked} | {_triple(f): "statement" for f in queried}
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
        return [n for n, d in enumerate(documents) if list(_triple(fact)) in d["triples"]]

    finetuning = [_row(f, "finetuning") for f in asked]
    queries = [_row(f, "query", proponents=stating(f)) for f in queried]
    return Corpus(documents, finetuning, queries)


def relation_to(query, document):
    """How `document` is near to `query`, by its annotation.

    "states", or else the first that holds of "same subject", "same object" and "same property", or
    else "other". query, document: rows of a `webnlg_corpus`.
    """
    s, p, o = _triple(query)
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
        and _place(query["subject"], d["text"]) >= 0
        and _place(query["answer"], d["text"]) >= 0
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


def start_model(folder, corpus, pieces=4096, width=128, layers=2, heads=4, context=128, seed=0):
    """Write into `folder` what pre-training on `corpus` starts from, in the Hugging Face layout.

    That is a `bpe_tokenizer` and a GPT-NeoX with weights drawn from `seed`. Returns `folder`;
    {"source": folder} is a model for `testbed.pretrain`.
    """
    tokenizer = bpe_tokenizer(corpus, pieces)
    tokenizer.save_pretrained(folder)
    tiny_gpt_neox(len(tokenizer), width, layers, heads, context, seed).save_pretrained(folder)
    return folder


def started(corpus, seed=0, **settings):
    """{"source": folder} of a `start_model` with these settings, kept in scratch/.

    It is the model for `testbed.trained`.
    """

    def make(folder):
        start_model(folder, corpus, seed=seed, **settings)

    key = {"corpus": corpus.digest(), "seed": seed, **settings}
    return {"source": str(scratch.built("start", key, make))}


def bpe_tokenizer(corpus, pieces=4096):
    """Byte-level BPE of at most `pieces` pieces (with <pad>).

    It is trained on the corpus' documents, questions and answers. Every text can be written in it;
    a text is read as if a space stood before it, so that a name has the same pieces at its
    beginning and inside. Raises ValueError for fewer pieces than bytes.
    """
    check_ranges(pieces=(pieces, 257, 1_000_000))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=["<pad>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rows = corpus.finetuning + corpus.queries
    texts = [d["text"] for d in corpus.documents] + [f"{r['prompt']} {r['answer']}" for r in rows]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def read_texts(folder):
    """All texts of folder/webnlg, each once: dicts with text, entry, category and triples, cleaned.

    The triples of a text that belongs to several entries are put together. Raises as
    `webnlg_corpus`.
    """
    if missing := [name for name in FILES if not (Path(folder) / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. Put there, as files or links:{LAYOUT}"
        )
    found = {}
    for name in FILES:
        for number, line in enumerate((Path(folder) / name).read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                triples = [[readable(s), words(p), readable(o)] for s, p, o in row["triples"]]
                for text in map(_one_line, row["texts"]):
                    new = dict(text=text, entry=row["id"], category=row["category"], triples=[])
                    here = found.setdefault(text, new)
                    here["triples"] += [t for t in triples if t not in here["triples"]]
            except (ValueError, KeyError, TypeError) as error:
                cause = f"{type(error).__name__} {error}"
                raise ValueError(
                    f"{folder}/{name}, line {number}: {cause}; expected{LAYOUT}"
                ) from error
    return [row for text, row in found.items() if text]


def readable(value):
    """An entity or literal as people would write it.

    It has no underscores, quotes, types, languages or bracketed remarks.
    """
    value = re.sub(r'(?<=")(\^\^.*|@\w+)$', "", value.strip()).strip('"').replace("_", " ")
    return _one_line(re.sub(r"\([^)]*\)", " ", value)) or _one_line(value)


def words(name):
    """The words of a property: leaderName → leader name, elevation_(in_metres) → elevation."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", readable(name)).replace("/", " or ").lower()


def _one_line(text):
    return " ".join(text.split())


def _place(part, text):
    """Where `part` stands in `text` as whole words, in any case; -1 where it does not."""
    found = re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text, re.IGNORECASE)
    return found.start() if found else -1


def _triple(row):
    return row["subject"], row["relation"], row["object"]


def _facts(texts, most):
    """Facts that can be asked about, in alphabetical order.

    Each has a triple's subject, relation and object, how its texts spell the object (answer), their
    numbers (texts), how many of them name the subject before the object (forward), and the category
    of the first.
    """
    objects, stating = defaultdict(set), defaultdict(list)
    for number, row in enumerate(texts):
        for s, p, o in row["triples"]:
            objects[s, p].add(o)
            if len(row["triples"]) <= most:
                stating[s, p, o].append(number)
    plain = [t for t in sorted(stating) if len(objects[t[:2]]) == 1 and len(stating[t]) >= LEAST]
    facts = [
        dict(
            subject=s,
            relation=p,
            object=o,
            texts=stating[s, p, o],
            answer=_spelling(o, [texts[n]["text"] for n in stating[s, p, o]]),
        )
        for s, p, o in plain
    ]
    facts = [f for f in facts if f["answer"] and not _bare(f["subject"]) & _bare(f["answer"])]

    def forward(fact):
        stating = [texts[n]["text"] for n in fact["texts"]]
        subject, answer = fact["subject"], fact["answer"]
        return sum(0 <= _place(subject, text) < _place(answer, text) for text in stating)

    def category(fact):
        return texts[fact["texts"][0]]["category"]

    return [f | dict(forward=forward(f), category=category(f)) for f in facts]


def _spelling(value, texts):
    """The longest form of an object that is short and stands in most of `texts`, or None.

    Its forms: as it is, the place without its region, the number without its zeros or with commas.
    """
    forms = [value, value.split(",")[0]]
    if number := re.fullmatch(r"(\d+)(\.\d+)?", value):
        forms += [value.removesuffix(".0"), f"{int(number[1]):,}"]
    short = [form for form in forms if 0 < len(form) <= LETTERS and len(form.split()) <= WORDS]
    usual = VERBATIM * len(texts)
    good = [form for form in short if sum(form in text for text in texts) >= usual]
    return max(good, key=len, default=None)


def _bare(text):
    return set(re.findall(r"\w+", text.lower()))


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
    facts = {_triple(f) for f in queried + asked}

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
