"""Where a profile's test-bed comes from: which corpus, and whether its models are trained here.

source      corpus                                          models
generated   `corpus.generate`: people with facts            both stages trained here
stories     `stories.stories_corpus`: TinyStories with      real weights, trained on
            planted names
webnlg      `webnlg.webnlg_corpus`: real sentences with     both stages trained here, with a
            annotated facts                                 tokenizer of their own
lama        `lama.lama_corpus`: LAMA facts and T-REx        a pair from elsewhere
            sentences, as in the paper
"""

import numpy as np

from msif.study.beds import given, testbed
from msif.study.beds.start import started
from msif.study.corpora import webnlg
from msif.study.corpora.corpus import generate
from msif.study.corpora.stories import stories_corpus
from msif.study.paths import from_root

SOURCES = {"generated": generate, "stories": stories_corpus, "webnlg": webnlg.webnlg_corpus}


def bed(seed, corpus, model, *, pretraining=None, finetuning=None, checkpoints=(), max_length=64):
    """The `Testbed` of one seed, kept in scratch/.

    corpus: {"source": one of the above} and that function's arguments; a relative folder is meant
    from the study's root. model and the rest: as for `testbed.trained`; webnlg: the arguments of
    `start.start_model`; lama: {"pretrained", "finetuned"}, the arguments of `load_model`, and no
    training. Raises ValueError for another source, or for training where there is none.
    """
    arguments = dict(from_root(corpus, "folder"))
    source = arguments.pop("source")
    if source == "lama":
        if pretraining or finetuning or checkpoints:
            raise ValueError(
                "source 'lama' takes a pair of models as it is; "
                "expected pretraining, finetuning and checkpoints to be empty"
            )
        return given.prepared(seed, **arguments, models=model, max_length=max_length)
    if source not in SOURCES:
        raise ValueError(f"corpus source {source!r}: expected one of {[*SOURCES, 'lama']}")
    made = SOURCES[source](seed=seed, **arguments)
    start = started(made, seed=seed, **model) if source == "webnlg" else model
    return testbed.trained(
        seed,
        made,
        start,
        pretraining=pretraining,
        finetuning=finetuning,
        checkpoints=checkpoints,
        max_length=max_length,
    )


def chance(beds):
    """Exact match of a guess that knows the relation of each query, mean over queries.

    It guesses for webnlg the answer most frequent in fine-tuning, elsewhere one of the relation's
    answers.
    """
    if all("category" in query for bed in beds for query in bed.corpus.queries):
        return float(np.mean([webnlg.chance(bed.corpus) for bed in beds]))
    answers = {}
    for row in (row for bed in beds for row in bed.corpus.queries + bed.corpus.finetuning):
        answers.setdefault(row.get("relation"), set()).add(row["answer"])
    queries = [query for bed in beds for query in bed.corpus.queries]
    return float(np.mean([1 / len(answers[query["relation"]]) for query in queries]))
