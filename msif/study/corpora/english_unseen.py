"""What the invented English corpus (`english`) does not hold: probe sentences, and open questions
that the model answers in words of its own."""

import random
from collections import defaultdict

from msif.core.generation import greedy
from msif.study.corpora.corpus import check_ranges, filler_sentences
from msif.study.corpora.english import led, question_in_chat, sentence
from msif.study.corpora.english_sentences import LEADS, RELATIONS
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
    stated, used = [d for d in corpus.documents if d["kind"] == "statement"], defaultdict(set)
    for d in stated:
        used[d["subject"], d["relation"], d["object"]].add(d["template"])
    found = []
    for number, row in enumerate(rows):
        said = rng.choice([d for d in stated if _same(d, row, "subject", "relation")])
        texts = {"statement": said["text"], "object first": _exchanged(said)}
        texts["reversed"] = " ".join(reversed(said["text"].split()))
        for probe, pool in _pools(used, row, taken):
            if pool:
                texts[probe] = rng.choice(pool)
        if "paraphrase" not in texts:
            raise ValueError(
                f"row {number}: the corpus states {row['subject']}'s {row['relation']} by each of "
                f"{len(RELATIONS[row['relation']].statements)} templates; generate it with fewer "
                f"statements"
            )
        found += [{"text": text, "probe": probe, "query": number} for probe, text in texts.items()]
    return found


def _exchanged(document):
    """A statement with subject and object exchanged."""
    subject, thing, template = (document[x] for x in ("subject", "object", "template"))
    lead = document["text"][: -len(template.format(s=subject, o=thing))].rstrip()
    return led(lead, template, template.format(s=thing, o=subject))


def _pools(used, row, taken):
    """(probe, its possible texts) of one fact. used: {fact: templates by which it is stated}."""
    own = row["subject"], row["relation"], row["object"]
    facts = {
        "paraphrase": [own],
        "other relation": [f for f in used if f[0] == own[0] and f[1] != own[1]],
        "other subject": [f for f in used if f[0] != own[0] and f[1:] == own[1:]],
    }
    for probe, some in facts.items():
        yield (
            probe,
            [
                led(lead, template, template.format(s=s, o=o))
                for s, r, o in sorted(some)
                for template in RELATIONS[r].statements
                if template not in used[s, r, o]
                for lead in LEADS
            ],
        )
    flipped = RELATIONS[row["relation"]].flipped
    yield "flipped", [template.format(s=own[0], o=own[2]) for template in flipped]
    yield "unrelated", [x for words in filler_sentences() if (x := sentence(words)) not in taken]


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
