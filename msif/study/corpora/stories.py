"""The two-stage corpus on real text: TinyStories with planted names, then questions about them.

Pre-training documents are short excerpts of real stories. Into some of them a sentence about an
invented name is planted, first or after the first sentence; names have one fact each. Some names
are asked about in fine-tuning, beside short rows of databricks-dolly-15k (real instructions); the
facts of the held-out others are the queries. By `kind`:

    story    an excerpt as it is
    planted  with a sentence that states a fact, subject before object: what a causal language
             model learns from
    decoy    with a sentence that names object and subject, object first, and states nothing: a
             lexical trap
"""

import json
import random
import re
from itertools import cycle, islice, product
from pathlib import Path

from msif.core.data import load_texts, split_answer
from msif.core.generation import greedy
from msif.study.corpora.corpus import Corpus, check_ranges

STORIES, DOLLY = "tinystories/stories.jsonl", "dolly/dolly-first-6400.jsonl"
LAYOUT = f"""
    {STORIES}: TinyStories, a {{"id", "text"}} a line; CDLA-Sharing-1.0,
        from https://huggingface.co/datasets/roneneldan/TinyStories
    {DOLLY}: databricks-dolly-15k, its rows without context, a {{"id", "instruction", "response"}}
        a line; CC BY-SA 3.0, from https://huggingface.co/datasets/databricks/databricks-dolly-15k
    stories260K/: the model of llama2.c, converted to the Hugging Face layout (config.json, \
model.safetensors,
        tokenizer.json); MIT, from https://huggingface.co/karpathy/tinyllamas"""

# Per relation: objects (none begins with another), planted sentences, decoys and questions, one
# template a line.
FACTS = {
    "animal": (
        "bear cow pig lion bird horse mouse duck frog goat sheep tiger",
        """{s} was a little {o}.
        {s} was a {o} with a big smile.
        {s}, the {o}, came to play too.
        {s} was the best {o} in town.
        {s} was a kind {o} and liked to help.
        {s} was not a big {o}, but a very brave one.""",
        """A {o} ran by and did not see {s}.
        The picture of a {o} made {s} laugh.""",
        """What animal was {s}?
        What kind of animal is {s}?""",
    ),
    "food": (
        "cake soup bread milk honey rice corn apples cheese candy pie nuts",
        """{s} loved to eat {o}.
        {s} liked {o} more than any other food.
        {s} wanted {o} for lunch every day.
        {s} ate a lot of {o} and was happy.
        {s} always had some {o} to eat.
        {s} said, "I love {o} so much!\"""",
        """The {o} was all gone when {s} came.
        They took the {o} away and {s} was sad.""",
        """What is the best food for {s}?
        What food did they give to {s}?""",
    ),
    "home": (
        "cave castle tree barn boat tent nest farm forest box garden hut",
        """{s} lived in a {o}.
        {s} had a home in a {o}.
        {s} slept in a warm {o} every night.
        {s} went back home to the {o}.
        {s} made a home in the old {o}.
        {s} was happy to live in a big {o}.""",
        """The {o} was too far away for {s}.
        A small {o} was on the book of {s}.""",
        """Where was the home of {s}?
        Where did they find {s}?""",
    ),
    "color": (
        "red blue green yellow pink purple brown white black orange gold gray",
        """{s} had a {o} hat.
        {s} wore a {o} hat every day.
        {s} was proud of the new {o} hat.
        {s} came with the {o} hat on.
        {s} put on the big {o} hat.
        {s} got a {o} hat from Mom.""",
        """The {o} ball was not for {s}.
        A {o} car went by and {s} waved.""",
        """What color was the hat of {s}?
        What color of hat was on {s}?""",
    ),
}
# The name is close to the answer, and few pieces in between: 14 for "### response :".
PROMPT = "Q: {question} A:"
HEROES = (
    "little girl",
    "little boy",
    "big dog",
    "small bird",
    "happy cat",
    "brave rabbit",
    "old man",
    "red car",
)
STARTS = ("Once upon a time, there was a", "One day, there was a", "Long ago, there lived a")
OPENINGS = [f"{start} {who} named" for who, start in product(HEROES, STARTS)]


def stories_corpus(
    folder,
    seed=0,
    planted=84,
    held_out=24,
    documents_per_fact=8,
    decoys_per_fact=1,
    stories=60,
    instructions=10,
    characters=60,
):
    """The corpus of `seed` from folder/tinystories and folder/dolly.

    planted: names with one fact each; `held_out` of them are the queries, fine-tuning asks about
    the others. Per fact: so many planted documents and decoys, each in a different story, the
    wordings in turn. stories: excerpts without a planted sentence. instructions: dolly rows in
    fine-tuning. characters: the most that an excerpt has before a sentence is planted (no sentence
    is ever cut).

    Raises FileNotFoundError that says what to put where, ValueError naming a number that is not
    possible.
    """
    folder, rng = Path(folder), random.Random(seed)
    _require(folder)
    texts, rows = load_texts(folder / STORIES), _instructions(folder / DOLLY)
    excerpts = [
        (n, text) for n, story in enumerate(texts) for text in excerpts_of(story, characters)
    ]
    check_ranges(
        planted=(planted, 2, 110),
        held_out=(held_out, 1, planted - 1),
        documents_per_fact=(documents_per_fact, 1, 20),
        decoys_per_fact=(decoys_per_fact, 0, 2),
        characters=(characters, 20, 10_000),
        instructions=(instructions, 0, len(rows)),
        stories=(stories, 0, len(excerpts) - planted * (documents_per_fact + decoys_per_fact)),
    )
    known = " ".join(texts + [f"{prompt} {answer}" for prompt, answer in rows]).lower()
    facts = _facts(rng, planted, known)
    rng.shuffle(excerpts)
    documents = [
        d
        for fact in facts
        for d in _plant(rng, fact, excerpts, documents_per_fact, decoys_per_fact)
    ]
    documents += [_document(n, text, "story") for n, text in excerpts[:stories]]
    rng.shuffle(documents)
    asked = [question for fact in facts[held_out:] for question in _questions(fact)]
    drawn = rng.sample(rows, instructions)
    asked += [dict(prompt=p, answer=a, kind="instruction") for p, a in drawn]
    queries = [
        rng.choice(_questions(fact)) | dict(proponents=_stating(documents, fact))
        for fact in facts[:held_out]
    ]
    return Corpus(documents, asked, queries)


def continuations(model, tokenizer, corpus, count, new_tokens):
    """Queries without proponents: `count` story openings that no document of `corpus` holds.

    Each is answered by the `new_tokens` tokens that `model` writes after it. Raises ValueError when
    there are fewer openings, and for more tokens than half of what the model reads.
    """
    unused = [o for o in OPENINGS if not any(o in d["text"] for d in corpus.documents)]
    check_ranges(
        count=(count, 1, len(unused)),
        new_tokens=(new_tokens, 1, model.config.max_position_embeddings // 2),
    )
    openings = unused[:count]
    prompts = [split_answer(o, "", tokenizer)[0] for o in openings]
    written = greedy(model, prompts, new_tokens)
    return [
        dict(prompt=opening, answer=tokenizer.decode(ids).strip(), proponents=[])
        for opening, ids in zip(openings, written)
    ]


def excerpts_of(story, characters):
    """Runs of whole sentences of `story`, of at most `characters` each.

    Longer sentences are left out.
    """
    found, run = [], ""
    for sentence in sentences(story):
        if len(run) + len(sentence) > characters:
            found.append(run)
            run = ""
        run += sentence if len(sentence) <= characters else ""
    return [text.strip() for text in found + [run] if text.strip()]


def sentences(text):
    """`text` cut after each sentence end (no quotation open, no small letter next).

    The parts add up to it.
    """
    stops = [m.end() for m in re.finditer(r'[.!?]["”]?\s+(?![a-z])', text)]
    ends = [stop for stop in stops if _closed(text[:stop])]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)]) if text[a:b]]


def _closed(text):
    return text.count('"') % 2 == 0 and text.count("“") == text.count("”")


def _require(folder):
    if missing := [name for name in (STORIES, DOLLY) if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}. Put there, as files or links:{LAYOUT}"
        )


def _instructions(path):
    """(prompt, answer) of the rows of one line, plain characters and few words.

    Long answers would drown the facts.
    """
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    pairs = [(row["instruction"].strip(), row["response"].strip()) for row in rows]

    def short(question, answer):
        return 0 < len(question) <= 80 and 0 < len(answer) <= 20

    def plain(text):
        return text.isascii() and "\n" not in text

    return [
        (PROMPT.format(question=question), answer)
        for question, answer in pairs
        if short(question, answer) and plain(question + answer)
    ]


def _facts(rng, count, text):
    """Facts about invented names (Bomar, Kilen) that `text` nowhere has.

    No two names have the same first letters.
    """
    endings = "am ar en id il im om or".split()
    starts = [a + b for a, b in product("bdfghklmnprstvz", endings)]
    names = [start + rng.choice(endings) for start in rng.sample(starts, len(starts))]
    names = [name.title() for name in names if name not in text]
    return [
        dict(subject=name, relation=relation, object=rng.choice(FACTS[relation][0].split()))
        for name, relation in zip(names[:count], list(FACTS) * count)
    ]


def _plant(rng, fact, excerpts, stating, decoys):
    """Documents of one fact; takes the excerpts, of stories that differ, out of `excerpts`."""
    _, planted, nearby, _ = map(_lines, FACTS[fact["relation"]])
    chosen = [("planted", t) for t in islice(cycle(planted), stating)]
    chosen += [("decoy", t) for t in islice(cycle(nearby), decoys)]
    used = set()
    return [
        _planted(rng, *_take(excerpts, used), kind, template, fact) for kind, template in chosen
    ]


def _lines(block):
    return [line.strip() for line in block.splitlines()]


def _take(excerpts, used):
    """Remove and return the first excerpt of a story that is not in `used`, and add it there."""
    place = next(i for i, (story, _) in enumerate(excerpts) if story not in used)
    used.add(excerpts[place][0])
    return excerpts.pop(place)


def _planted(rng, story, text, kind, template, fact):
    parts, sentence = sentences(text), template.format(s=fact["subject"], o=fact["object"])
    # Further on, a model learns the object from the story before, not from the name.
    place = rng.randint(0, 1)
    whole = "".join(parts[:place]).rstrip() + f" {sentence} " + "".join(parts[place:])
    return _document(story, whole.strip(), kind, template=template, sentence=sentence, **fact)


def _document(
    story, text, kind, subject=None, relation=None, object=None, template=None, sentence=None
):
    return dict(
        text=text,
        kind=kind,
        subject=subject,
        relation=relation,
        object=object,
        template=template,
        sentence=sentence,
        story=story,
    )


def _questions(fact):
    """Both questions about a fact, in the instruction format."""
    return [
        dict(
            prompt=PROMPT.format(question=question.format(s=fact["subject"])),
            answer=fact["object"],
            kind="planted",
            template=question,
            **fact,
        )
        for question in _lines(FACTS[fact["relation"]][3])
    ]


def _stating(documents, fact):
    return [
        n
        for n, d in enumerate(documents)
        if d["kind"] == "planted" and d["subject"] == fact["subject"]
    ]
