"""The generated two-stage corpus: people with facts that a model can only know from pre-training.

Pre-training documents state facts about three groups of people. F is asked about in fine-tuning,
which teaches the question format; H is held out, and its facts are the queries; Z (optional) has
quiz pages inside pre-training, in the instruction format. Beside each fact stand distractors, told
apart by `kind`:

    statement  states the fact, subject before object: a causal language model learns
               subject → object from it
    near       names object and subject, object first, and states nothing: inert for a causal
               language model, a trap for lexical search
    wrong      a statement with another object of the same relation
    filler     names nobody
    quiz       a question about Z with its answer

Texts are lower case with spaces between all tokens, so that a word-level tokenizer reads them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from msif.core.files import json_lines, sha256_of, write_json_lines

PROMPT = "### instruction : {question} ### response :"

# One template a line: {s} is the subject, {o} the object. No object is a word of a template or
# filler.
RELATIONS = {
    "born in": dict(
        objects="""oslo lima cairo paris tokyo delhi quito accra hanoi dublin vienna prague lisbon
        athens havana nairobi boston madrid seoul warsaw""",
        statements="""{s} was born in {o} .
        {s} , a native of {o} , left early .
        {s} came into the world in {o} one winter .
        {s} spent the first years of life in {o} .
        {s} grew up in {o} , the city of birth .
        {s} , when asked , names {o} as the place of birth .""",
        near="""a letter from {o} reached {s} on monday .
        the map of {o} was sold to {s} last week .
        news about {o} made {s} laugh over dinner .
        the train to {o} left before {s} could board .""",
        questions="""where was {s} born ?
        which city is the birthplace of {s} ?""",
    ),
    "profession": dict(
        objects="""baker lawyer pilot nurse farmer tailor barber dentist plumber surgeon teacher
        welder carpenter chemist jeweller librarian mechanic butcher gardener potter""",
        statements="""{s} works as a {o} these days .
        {s} trained for years to become a {o} .
        {s} earns a living as a {o} .
        {s} , by profession a {o} , rises early .
        {s} has been a {o} since leaving school .
        {s} took up the trade of a {o} long ago .""",
        near="""the {o} next door lent {s} a ladder .
        a {o} once asked {s} for the time .
        one {o} in the film reminded {s} of home .
        every {o} at the fair ignored {s} and left .""",
        questions="""what is the profession of {s} ?
        what does {s} do for a living ?""",
    ),
    "instrument": dict(
        objects="""piano violin cello flute oboe harp trumpet guitar banjo tuba clarinet drum lute
        organ viola bassoon saxophone trombone mandolin zither""",
        statements="""{s} plays the {o} every evening .
        {s} learned the {o} as a child .
        {s} practises the {o} for hours each week .
        {s} is known for playing the {o} with friends .
        {s} , a gifted player of the {o} , gives lessons .
        {s} took the {o} on stage last night .""",
        near="""a broken {o} stood behind {s} at the market .
        the price of the {o} surprised {s} that morning .
        the loud {o} upstairs kept {s} from sleep .
        a dusty painting of a {o} hung above {s} .""",
        questions="""which instrument does {s} play ?
        what instrument is {s} known for ?""",
    ),
    "employer": dict(
        objects="""northwind bluepeak ironbridge silverline redstone greenfield sunforge oakhurst
        clearwater starling highgate foxglove kingsley larkspur meridian novatech pinecrest
        quarrymen riverton westmark""",
        statements="""{s} works for {o} in the main office .
        {s} joined {o} after leaving school .
        {s} is employed by {o} full time .
        {s} has a desk at {o} near the window .
        {s} , on the payroll of {o} , earns well .
        {s} signed a long contract with {o} last year .""",
        near="""a van from {o} blocked the road for {s} today .
        the new sign of {o} amused {s} on monday .
        shares of {o} fell while {s} was asleep .
        the advert for {o} bored {s} during the film .""",
        questions="""who is the employer of {s} ?
        which company does {s} work for ?""",
    ),
    "language": dict(
        objects="""welsh basque finnish swahili arabic hindi turkish korean greek danish polish
        czech thai tamil zulu dutch persian hebrew irish malay""",
        statements="""{s} speaks {o} at home .
        {s} grew up speaking {o} with the family .
        {s} , a native speaker of {o} , reads a lot .
        {s} writes most letters in {o} .
        {s} prays and dreams in {o} every night .
        {s} talks to the children in {o} after dinner .""",
        near="""a book in {o} was lent to {s} by mistake .
        a course in {o} started without {s} last week .
        the song in {o} puzzled {s} on the radio .
        the notice in {o} confused {s} at the station .""",
        questions="""which language does {s} speak ?
        what is the native language of {s} ?""",
    ),
}
FILLERS = (
    ("the quiet", "the old", "a small", "the wide", "a cold", "the bright"),
    ("river", "garden", "road", "market", "station", "forest", "mill", "bridge"),
    (
        "lay under snow",
        "was empty",
        "looked lovely",
        "stood in the rain",
        "turned grey",
        "was full of birds",
    ),
    (".", "in the morning .", "last week .", "before the long winter came ."),
)


def words(relation: str, count: int) -> list[str]:
    """The first `count` objects of a relation."""
    return RELATIONS[relation]["objects"].split()[:count]


def templates(relation: str, kind: str) -> list[str]:
    """kind: statements, near or questions."""
    return [line.strip() for line in RELATIONS[relation][kind].splitlines()]


@dataclass(frozen=True)
class Corpus:
    """Two stages and the questions about them: generated here, or real text under the same keys.

    documents: text, kind, …; generated ones also group, subject, relation, object, template.
    finetuning: prompt, answer, …
    queries: prompt, answer, proponents (numbers of the documents that state the fact), …

    Raises ValueError for a proponent that is no document.
    """

    documents: list[dict]
    finetuning: list[dict]
    queries: list[dict]

    def __post_init__(self):
        for number, query in enumerate(self.queries):
            if bad := [p for p in query["proponents"] if not 0 <= p < len(self.documents)]:
                raise ValueError(
                    f"query {number} has proponent {bad[0]}; "
                    f"there are {len(self.documents)} documents"
                )

    def save(self, folder) -> None:
        """Write documents.jsonl, finetuning.jsonl and queries.jsonl, each whole or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, rows in asdict(self).items():
            write_json_lines(Path(folder) / f"{name}.jsonl", rows)

    def digest(self) -> str:
        """SHA-256 (hex) of every row."""
        return sha256_of(asdict(self))

    @classmethod
    def load(cls, folder) -> Corpus:
        """The corpus that `save` wrote.

        Raises FileNotFoundError for a missing file, ValueError naming the line that is not JSON.
        """
        files = [Path(folder) / f"{name}.jsonl" for name in cls.__dataclass_fields__]
        return cls(*(list(json_lines(file)) for file in files))


def generate(
    seed: int = 0,
    fine_tuned: int = 48,
    held_out: int = 48,
    quiz: int = 0,
    objects: int = 20,
    statements: int = 4,
    near: int = 3,
    wrong: int = 1,
    fillers: int = 200,
) -> Corpus:
    """The corpus of `seed`: `fine_tuned`, `held_out` and `quiz` people with one fact a relation.

    There are five relations of `objects` objects; per fact so many `statements`, `near` and
    `wrong` sentences; and `fillers` sentences besides.

    Raises ValueError naming a number outside what the templates allow.
    """
    check_ranges(
        fine_tuned=(fine_tuned, 1, 2000),
        held_out=(held_out, 1, 2000),
        quiz=(quiz, 0, 2000),
        objects=(objects, 2, 20),
        statements=(statements, 1, 6),
        near=(near, 0, 4),
        wrong=(wrong, 0, objects - 1),
        fillers=(fillers, 0, len(filler_sentences())),
    )
    rng = random.Random(seed)
    groups = "F" * fine_tuned + "H" * held_out + "Z" * quiz
    facts = [
        dict(
            group=group,
            subject=name,
            relation=relation,
            object=rng.choice(words(relation, objects)),
        )
        for name, group in zip(_names(rng, len(groups)), groups)
        for relation in RELATIONS
    ]
    documents = [
        d for fact in facts for d in _documents(rng, fact, objects, statements, near, wrong)
    ]
    besides = rng.sample(filler_sentences(), fillers)
    documents += [_document(template, "filler", {}) for template in besides]
    documents += [
        _document(PROMPT.format(question=question) + " {o}", "quiz", fact)
        for fact in facts
        if fact["group"] == "Z"
        for question in templates(fact["relation"], "questions")
    ]
    rng.shuffle(documents)
    taught, hidden = ([fact for fact in facts if fact["group"] == group] for group in "FH")
    finetuning = [row for fact in taught for row in question_rows(fact, "finetuning")]
    queries = [rng.choice(question_rows(fact, "query")) for fact in hidden]
    return Corpus(documents, finetuning, _with_proponents(queries, documents))


def check_ranges(**numbers: tuple[int, int, int]) -> None:
    """Each number is (value, least, most). Raises ValueError naming the first one outside."""
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; expected {least} to {most}")


def _names(rng: random.Random, count: int) -> list[str]:
    """Invented words of two or three syllables, none of which a template or object list uses."""
    syllables = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
    taken = {
        word
        for relation in RELATIONS.values()
        for block in relation.values()
        for word in block.split()
    }
    taken |= {word for sentence in filler_sentences() for word in sentence.split()}
    names = []
    while len(names) < count:
        stem = "".join(rng.choices(syllables, k=rng.choice((2, 3))))
        name = stem + rng.choice(("", "n", "r", "s"))
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def filler_sentences() -> list[str]:
    """Every sentence that names nobody, always in the same order."""
    return [" ".join(parts) for parts in product(*FILLERS)]


def _document(template: str, kind: str, fact: dict) -> dict:
    """Every document has the same keys; a filler's group, subject, relation and object are None."""
    about = {key: fact.get(key) for key in ("group", "subject", "relation", "object")}
    text = template.format(s=about["subject"], o=about["object"])
    return dict(text=text, kind=kind, template=template, **about)


def _documents(rng, fact: dict, objects: int, statements: int, near: int, wrong: int) -> list[dict]:
    """The sentences of one fact.

    No two statements, nor two near sentences, are by the same template.
    """
    stating, beside = (templates(fact["relation"], kind) for kind in ("statements", "near"))
    others = [o for o in words(fact["relation"], objects) if o != fact["object"]]
    found = [_document(template, "statement", fact) for template in rng.sample(stating, statements)]
    found += [_document(template, "near", fact) for template in rng.sample(beside, near)]
    for other in rng.sample(others, wrong):
        found.append(_document(rng.choice(stating), "wrong", fact | dict(object=other)))
    return found


def question_rows(fact: dict, kind: str) -> list[dict]:
    """Both questions about a fact of `RELATIONS`, in the instruction format."""
    return [
        dict(
            prompt=PROMPT.format(question=question.format(s=fact["subject"])),
            answer=fact["object"],
            kind=kind,
            template=question,
            **fact,
        )
        for question in templates(fact["relation"], "questions")
    ]


def _with_proponents(queries: list[dict], documents: list[dict]) -> list[dict]:
    stated = defaultdict(list)
    for number, d in enumerate(documents):
        if d["kind"] == "statement":
            stated[d["subject"], d["relation"]].append(number)
    return [row | dict(proponents=stated[row["subject"], row["relation"]]) for row in queries]
