"""LAMA's and T-REx's published formats in miniature: invented people, three relations."""

import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NAMES = "Bomar Kilen Dorim Fesal Garon Himel Jurat Lenim Mosar Nelim Paren Rusil".split()
LABELS = {
    "P19": ("place of birth", "Oslo Lima Cairo Quito"),
    "P106": ("occupation", "baker pilot tailor"),
    "P1303": ("instrument", "flute cello"),
}
SENTENCES = {
    "P19": ["{s} was born in {o}.", "Born in {o}, {s} moved away early."],
    "P106": ["{s} works as a {o}.", "{s} is a {o} by trade."],
    "P1303": ["{s} plays the {o}.", "Few people play the {o} as {s} does."],
}


def jsonl(path, rows):
    """One JSON object a line, in a folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def entity(label):
    """The Wikidata id of a label: made up, and always the same."""
    return f"Q{sum(ord(c) * 131**i for i, c in enumerate(label)) % 10**7}"


def miniature(folder):
    """LAMA and T-REx files about NAMES, xP3-like rows; one article a person,
    one sentence a statement and one that states nothing."""
    rng, facts, articles = random.Random(0), [], []
    for name in NAMES:
        own = [(name, r, rng.choice(objects.split())) for r, (_, objects) in LABELS.items()]
        told = [template.format(s=s, o=o) for s, r, o in own for template in SENTENCES[r]]
        told.append(f"{name} is often tired.")
        ends = [len(" ".join(told[: n + 1])) for n in range(len(told))]
        aligned = [(n // 2, n, "SPOAligner") for n in range(6)]
        aligned.append((0, 0, "Simple-Aligner"))  # a fact twice in one sentence, as there
        articles.append(
            {
                "docid": f"http://www.wikidata.org/entity/{entity(name)}",
                "title": name,
                "text": " ".join(told),
                "sentences_boundaries": [[end - len(x), end] for end, x in zip(ends, told)],
                "triples": [
                    {
                        "sentence_id": n,
                        "annotator": annotator,
                        "subject": {"uri": f"http://www.wikidata.org/entity/{entity(own[f][0])}"},
                        "predicate": {"uri": f"http://www.wikidata.org/prop/direct/{own[f][1]}"},
                        "object": {"uri": f"http://www.wikidata.org/entity/{entity(own[f][2])}"},
                    }
                    for f, n, annotator in aligned
                ],
            }
        )
        facts += own
    articles[0]["triples"].append(
        {
            "sentence_id": 6,
            "annotator": "SPOAligner",
            "subject": {"uri": "http://www.wikidata.org/entity/Q1"},
            "predicate": {"uri": "http://www.wikidata.org/prop/direct/P9"},
            "object": {"uri": "2001-01-01"},
        }
    )
    jsonl(
        folder / "relations.jsonl",
        [
            {"relation": r, "label": label, "template": "[X] - [Y] ."}
            for r, (label, _) in LABELS.items()
        ],
    )
    for relation in LABELS:
        jsonl(
            folder / "TREx" / f"{relation}.jsonl",
            [
                {
                    "uuid": f"{s}-{r}",
                    "sub_uri": entity(s),
                    "sub_label": s,
                    "predicate_id": r,
                    "obj_uri": entity(o),
                    "obj_label": o,
                    "evidences": [],
                }
                for s, r, o in facts
                if r == relation
            ],
        )
    (folder / "T-REx").mkdir(exist_ok=True)
    for n in range(2):
        (folder / "T-REx" / f"re-nlg_{n}.json").write_text(json.dumps(articles[n::2]))
    jsonl(
        folder / "xp3.jsonl",
        [
            {"inputs": f"What is {a} plus {b}? " * (1 + 30 * (a == 7)), "targets": str(a + b)}
            for a in range(10)
            for b in range(10)
        ]
        + [{"inputs": "Blank?", "targets": " "}],
    )
    return folder


def tokenizer(folder):
    """A byte-level tokenizer like BLOOM's, trained on the miniature."""
    texts = [path.read_text() for path in sorted(folder.rglob("*.json*"))]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<pad>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>")
