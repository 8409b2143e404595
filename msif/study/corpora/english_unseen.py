"""What the invented English corpus (`english`) does not hold: probe sentences, and open questions
that the model answers in words of its own."""

import random

from msif.core.generation import greedy
from msif.study.corpora.corpus import check_ranges, filler_sentences
from msif.study.corpora.english import question_in_chat, sentence
from msif.study.corpora.english_sentences import RELATIONS
from msif.study.corpora.webnlg_texts import place

TELL = "Tell me about {subject}."
# Of nothing that the corpus says: does the model still chat?
GENERAL = (
    "What is the capital of Japan?",
    "Give me three tips for a good night's sleep.",
    "Write one sentence about the sea.",
    "What is 7 times 8?",
)


def probe_documents(corpus, rows, seed=0):
    """Probes of invented facts: dicts with text, probe (one of `probes.PROBES`) and query (the
    number of the fact in rows); the corpus holds none but the first.

    paraphrase: by a template in which the corpus does not state the fact. object first: a statement
    with subject and object exchanged, a false sentence. flipped: the true fact, object first.
    Raises ValueError for a row whose fact the corpus states by every template.
    """
    rng, taken = random.Random(seed), {d["text"] for d in corpus.documents}
    stated = [d for d in corpus.documents if d["kind"] == "statement"]
    facts = sorted({(d["subject"], d["relation"], d["object"]) for d in stated})
    found = []
    for number, row in enumerate(rows):
        own = [d for d in stated if _same(d, row, "subject", "relation")]
        pools = {probe: [t for t in texts if t not in taken] for probe, texts in _texts(facts, row)}
        if not pools["paraphrase"]:
            raise ValueError(
                f"row {number}: the corpus states {row['subject']}'s {row['relation']} by each of "
                f"{len(RELATIONS[row['relation']].statements)} templates; generate it with fewer "
                f"statements"
            )
        said = rng.choice(own)
        exchanged = said["template"].format(s=row["object"], o=row["subject"])
        texts = {"statement": said["text"], "object first": exchanged}
        texts["reversed"] = " ".join(reversed(said["text"].split()))
        texts |= {probe: rng.choice(pool) for probe, pool in pools.items() if pool}
        found += [{"text": texts[p], "probe": p, "query": number} for p in texts]
    return found


def _texts(facts, row):
    """(probe, texts) of one fact: those that do not depend on how the corpus states it."""
    subject, name, thing = row["subject"], row["relation"], row["object"]
    pools = {
        "paraphrase": [(subject, name, thing)],
        "other relation": [f for f in facts if f[0] == subject and f[1] != name],
        "other subject": [f for f in facts if f[0] != subject and f[1:] == (name, thing)],
    }
    for probe, some in pools.items():
        yield probe, [t.format(s=s, o=o) for s, r, o in some for t in RELATIONS[r].statements]
    yield "flipped", [t.format(s=subject, o=thing) for t in RELATIONS[name].flipped]
    yield "unrelated", [sentence(words) for words in filler_sentences()]


def known_before(model, tokenizer, corpus, new_tokens=24):
    """Numbers of the real queries whose answer is in what a model says to them: facts that it knew
    before it read the corpus."""
    real = [n for n, query in enumerate(corpus.queries) if query["about"] == "real"]
    said = own_words(model, tokenizer, [corpus.queries[n]["prompt"] for n in real], new_tokens)
    return [n for n, text in zip(real, said) if place(corpus.queries[n]["answer"], text) >= 0]


def own_words(model, tokenizer, prompts, new_tokens):
    """What a model answers to prompts in the chat format, greedily, up to its end of turn."""
    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    written = greedy(model, ids, new_tokens, stop={tokenizer.eos_token_id})
    return [tokenizer.decode(x).strip() for x in written]


def _same(document, row, *keys):
    return all(document[key] == row[key] for key in keys)


def continuations(model, tokenizer, corpus, count, new_tokens=32):
    """What `model` answers to open questions about held-out subjects, up to its end of turn: rows
    with prompt, question and answer, without proponents.

    Raises ValueError for more than there are subjects."""
    asked = [q for q in corpus.queries if q["about"] == "invented"]
    subjects = list(dict.fromkeys(q["subject"] for q in asked))
    check_ranges(count=(count, 1, len(subjects)), new_tokens=(new_tokens, 1, 1000))
    rows = [
        question_in_chat({"prompt": TELL.format(subject=s)}, tokenizer) for s in subjects[:count]
    ]
    texts = own_words(model, tokenizer, [row["prompt"] for row in rows], new_tokens)
    return [row | {"answer": text, "proponents": []} for row, text in zip(rows, texts) if text]
