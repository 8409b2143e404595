"""What the model of the scalability study reads, and the model before it has.

source      documents                                           tokenizer
generated   `corpus.generate`: people with facts                its words
wikitext    chunks of WikiText's paragraphs, as the paper's     byte-level BPE of its own,
            are of the Penn Treebank                            `pieces` pieces
"""

import random

from msif.core.models import tiny_gpt_neox
from msif.core.sequences import Sequence
from msif.study.beds import testbed
from msif.study.beds.start import bpe_tokenizer
from msif.study.corpora import wikitext
from msif.study.corpora.corpus import Corpus, generate
from msif.study.corpora.neighbours import chunked
from msif.study.paths import from_root


def begun(seed, corpus, model):
    """(documents, list of `data.Sequence`; the model, with weights drawn from `seed`).

    corpus: the arguments of `corpus.generate`, or {"source": "wikitext", "folder", "files":
    pattern, "length": tokens of a chunk, "limit": chunks, drawn by seed}. model: the arguments of
    `models.tiny_gpt_neox`; of wikitext also "pieces". Raises ValueError for another source."""
    source = corpus.get("source", "generated")
    if source not in SOURCES:
        raise ValueError(f"corpus source {source!r}; expected one of {list(SOURCES)}")
    rest = {name: x for name, x in corpus.items() if name != "source"}
    return SOURCES[source](seed, rest, model)


def _generated(seed, corpus, model):
    text = generate(seed=seed, **corpus)
    tokenizer, net = testbed.start(text, model, seed)
    return testbed.encode(text, tokenizer, 64)[0], net


def _wikitext(seed, corpus, model):
    folder, pattern = from_root(corpus, "folder")["folder"], corpus["files"]
    text = Corpus(wikitext.paragraphs(folder, pattern), [], [])
    size = {name: x for name, x in model.items() if name != "pieces"}
    tokenizer = bpe_tokenizer(text, model["pieces"])
    _, ids = chunked([x["text"] for x in text.documents], tokenizer, corpus["length"])
    whole = [row for row in ids if len(row) == corpus["length"]]
    if len(whole) < corpus["limit"]:
        raise ValueError(
            f"{folder}/{pattern} has {len(whole)} chunks of {corpus['length']} tokens; "
            f"expected limit, {corpus['limit']}, at least: lower it, or length"
        )
    drawn = random.Random(seed).sample(whole, corpus["limit"])
    documents = [Sequence(n, row, row) for n, row in enumerate(drawn)]
    return documents, tiny_gpt_neox(len(tokenizer), seed=seed, **size)


SOURCES = {"generated": _generated, "wikitext": _wikitext}
