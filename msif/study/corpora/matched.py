"""The matched corpus: all candidates of a query hold the same words, and only some state the fact.

A fact of subject {s} and object {o} has two verbs {v} and {w} with the relation's particle {p}, and
one bystander {n}: "plays", "studies", "the", "cousin". All its candidates are the SAME words in
another order. No search by words can tell them apart: BM25 and TF-IDF scores, stop words removed or
not, tie to the last bit, and so does any other function of the bag of words and the length. What
differs is of whom {v} {p} {o} is said, and how, by `kind`:

    statement      of the subject; what else the sentence says is about the bystander
    mention        of the bystander; what else is said is about the subject
    negated        denied of the bystander or, subject first, of the subject
    quoted         said by the subject of the bystander
    hypothetical   supposed of the bystander or, subject first, of the subject
    filler         names nobody, and is no candidate

No distractor states the fact, but a causal language model does not read so: it learns
subject -> object from any sentence that puts the subject first, and `order` says which do. All
statements do, the object right behind the verb. Distractors with the object first are inert:
stating is teaching. Those with the subject first (few, drawn at random among the four kinds) teach
without stating, the more the nearer they come to "{s} {v} {p} {o}": where they count as misses, a
method may be right about the model. `msif.study.fact_tracing.causal` tells.
"""

import random
from collections import defaultdict
from itertools import chain, product

from msif.study.corpora.corpus import (
    PROMPT,
    RELATIONS,
    Corpus,
    check_ranges,
    filler_sentences,
    question_rows,
    words,
)

# Permutations of one bag of words, in which {v} and {w} may be exchanged. Told by one verb alone, a
# fact can be continued by a model that learnt it, but is answered less often: the second verb of
# each fact is the paraphrase that the bag allows.
STATEMENTS = (
    "{s} {v} {p} {o} , and the {n} never says or {w} much , even if late .",
    "{s} {v} {p} {o} , and even if late , the {n} never says or {w} much .",
    "even if late , {s} {v} {p} {o} , and the {n} never says or {w} much .",
    "the {n} never says or {w} much , even if late , and {s} {v} {p} {o} .",
)
DISTRACTORS = {
    ("mention", "object first"): (
        "the {n} {v} {p} {o} , and {s} never says or {w} much , even if late .",
        "the {n} {v} {p} {o} , and even if late , {s} never says or {w} much .",
    ),
    ("negated", "object first"): (
        "the {n} never {v} {p} {o} , and {s} says or {w} much , even if late .",
        "the {n} never {v} {p} {o} , and even if late , {s} says or {w} much .",
    ),
    ("quoted", "object first"): (
        "the {n} {v} {p} {o} or {w} , says {s} , and never much even if late .",
        "the {n} {w} or {v} {p} {o} , says {s} , and never much even if late .",
    ),
    ("hypothetical", "object first"): (
        "even if the {n} {v} {p} {o} , {s} never says or {w} much , and late .",
        "if late , and the {n} {v} {p} {o} , even {s} never says or {w} much .",
    ),
    ("mention", "subject first"): (
        "{s} never says or {w} much , even if late , and the {n} {v} {p} {o} .",
        "even if late , {s} never says or {w} much , and the {n} {v} {p} {o} .",
    ),
    ("negated", "subject first"): (
        "{s} never {v} {p} {o} , and the {n} says or {w} much , even if late .",
        "{s} never {v} {p} {o} , and even if late , the {n} says or {w} much .",
    ),
    ("quoted", "subject first"): (
        "{s} says the {n} {w} or {v} {p} {o} , and never much , even if late .",
        "{s} says , even if late , the {n} {w} or {v} {p} {o} and never much .",
    ),
    ("hypothetical", "subject first"): (
        "even if {s} {v} {p} {o} , the {n} never says or {w} much , and late .",
        "if late , and {s} {v} {p} {o} , even the {n} never says or {w} much .",
    ),
}
KINDS = ("mention", "negated", "quoted", "hypothetical")
VERBS = {
    "born in": "comes hails stems travels",
    "profession": "works trains toils serves",
    "instrument": "plays practises teaches studies",
    "employer": "works drives cooks types",
    "language": "speaks writes sings prays",
}
PARTICLES = {
    "born in": "from",
    "profession": "as a",
    "instrument": "the",
    "employer": "for",
    "language": "in",
}
BYSTANDERS = "cousin aunt uncle nephew niece guest twin stranger".split()


def generate(
    seed=0,
    fine_tuned=20,
    held_out=20,
    objects=20,
    statements=5,
    object_first=1,
    subject_first=1,
    fillers=100,
):
    """The matched `Corpus` of `seed`: `fine_tuned` and `held_out` people, five relations.

    objects: of each relation. Per fact: so many `statements`, no two of one template and order of
    verbs; `object_first` distractors of each of the four kinds; `subject_first` distractors in all,
    each of another kind, drawn at random. All of them are the candidates of the fact's query: equal
    words, and so equal length. fillers: sentences besides.

    documents: text, kind, order ("subject first", "object first", None for a filler), verbs,
    template, group ("F" is asked about in fine-tuning, "H" held out), subject, relation, object.
    finetuning: both questions of each fact of F. queries: one question of each fact of H, with
    `candidates`, the numbers of the fact's documents, and `proponents`, those of them that state
    it. Raises ValueError naming a number outside what the templates allow.
    """
    check_ranges(
        fine_tuned=(fine_tuned, 1, 2000),
        held_out=(held_out, 1, 2000),
        objects=(objects, 2, 20),
        statements=(statements, 1, 2 * len(STATEMENTS)),
        object_first=(object_first, 0, 2),
        subject_first=(subject_first, 0, len(KINDS)),
        fillers=(fillers, 0, len(filler_sentences())),
    )
    rng = random.Random(seed)
    people = zip(_names(rng, fine_tuned + held_out), "F" * fine_tuned + "H" * held_out)
    facts = [
        dict(
            group=group,
            subject=name,
            relation=relation,
            object=rng.choice(words(relation, objects)),
            verbs=rng.sample(VERBS[relation].split(), 2),
        )
        for name, group in people
        for relation in RELATIONS
    ]
    documents = [
        d for fact in facts for d in _candidates(rng, fact, statements, object_first, subject_first)
    ]
    documents += [_document(text, "filler") for text in rng.sample(filler_sentences(), fillers)]
    rng.shuffle(documents)
    about = defaultdict(list)
    for number, d in enumerate(documents):
        about[d["subject"], d["relation"]].append(number)
    taught, hidden = ([fact for fact in facts if fact["group"] == group] for group in "FH")
    finetuning = [row for fact in taught for row in question_rows(fact, "finetuning")]
    queries = []
    for fact in hidden:
        candidates = about[fact["subject"], fact["relation"]]
        stating = [n for n in candidates if documents[n]["kind"] == "statement"]
        row = rng.choice(question_rows(fact, "query"))
        queries.append(row | dict(candidates=candidates, proponents=stating))
    return Corpus(documents, finetuning, queries)


def _candidates(rng, fact, statements, object_first, subject_first):
    """The sentences of one fact, with one bystander.

    No two statements, nor two distractors, are of the same template.
    """
    bystander, both = rng.choice(BYSTANDERS), (False, True)
    stating = rng.sample(list(product(STATEMENTS, both)), statements)
    chosen = [(t, "statement", "subject first", swap) for t, swap in stating]
    for kind in KINDS:
        for t in rng.sample(DISTRACTORS[kind, "object first"], object_first):
            chosen.append((t, kind, "object first", rng.choice(both)))
    for kind in rng.sample(KINDS, subject_first):
        t = rng.choice(DISTRACTORS[kind, "subject first"])
        chosen.append((t, kind, "subject first", rng.choice(both)))
    return [_document(*each, fact, bystander) for each in chosen]


def _document(template, kind, order=None, swap=False, fact=None, bystander=None):
    keys = ("verbs", "group", "subject", "relation", "object")
    about = {key: (fact or {}).get(key) for key in keys}
    text = template
    if fact:
        v, w = reversed(fact["verbs"]) if swap else fact["verbs"]
        text = template.format(
            s=fact["subject"],
            o=fact["object"],
            v=v,
            w=w,
            p=PARTICLES[fact["relation"]],
            n=bystander,
        )
    return dict(text=text, kind=kind, order=order, template=template, **about)


def _names(rng, count):
    """Invented words of two syllables and an ending, which no sentence or question uses."""
    syllables = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
    texts = [
        *filler_sentences(),
        PROMPT,
        *BYSTANDERS,
        *STATEMENTS,
        *chain(*DISTRACTORS.values()),
        *VERBS.values(),
        *PARTICLES.values(),
    ]
    texts += [block for relation in RELATIONS.values() for block in relation.values()]
    taken = {word for text in texts for word in text.split()}
    names = (a + b + end for a, b, end in product(syllables, syllables, ("", "n", "r", "s")))
    return rng.sample([name for name in names if name not in taken], count)
