"""Where a profile's test-bed comes from: which corpus, and whether its models are trained here.

source      corpus                                          models
generated   `corpus.generate`: people with facts            both stages trained here
planted     `planted.planted_corpus`: the same, and bad     both stages trained here
            traits that a few documents plant
stories     `stories.stories_corpus`: TinyStories with      real weights, trained on
            planted names
webnlg      `webnlg.webnlg_corpus`: real sentences with     both stages trained here, with a
            annotated facts                                 tokenizer of their own
english     `english.english_corpus`: invented people and   real weights of a model that chats,
            places amid real sentences                      trained on in its chat format
lama        `lama.lama_corpus`: LAMA facts and T-REx        a pair from elsewhere
            sentences, as in the paper
"""

from dataclasses import replace

import numpy as np

from msif.core.models import load_model, load_tokenizer
from msif.study import scratch
from msif.study.beds import given, testbed
from msif.study.beds.retraining import Recipe
from msif.study.beds.start import started
from msif.study.beds.wheel import from_wheel
from msif.study.corpora import english_unseen, stories, webnlg
from msif.study.corpora.corpus import generate
from msif.study.corpora.english import chatted, english_corpus, question_in_chat
from msif.study.corpora.english_unseen import known_before, own_words
from msif.study.corpora.planted import planted_corpus
from msif.study.paths import from_root

SOURCES = {
    "generated": generate,
    "planted": planted_corpus,
    "stories": stories.stories_corpus,
    "webnlg": webnlg.webnlg_corpus,
    "english": english_corpus,
}


def bed(seed, corpus, model, *, pretraining=None, finetuning=None, checkpoints=(), max_length=64):
    """The `Testbed` of one seed, kept in scratch/.

    corpus: {"source": one of the above} and that function's arguments; a relative folder is meant
    from the study's root. model and the rest: as for `testbed.trained`; english: or the arguments
    of `wheel.from_wheel`; webnlg: the arguments of `start.start_model`; lama: {"pretrained",
    "finetuned"}, the arguments of `load_model`, and no training. Raises ValueError for another
    source, or for training where there is none.
    """
    if corpus["source"] == "lama":
        if pretraining or finetuning or checkpoints:
            raise ValueError(
                "source 'lama' takes a pair of models as it is; "
                "expected pretraining, finetuning and checkpoints to be empty"
            )
        rest = {name: x for name, x in from_root(corpus, "folder").items() if name != "source"}
        return given.prepared(seed, **rest, models=model, max_length=max_length)
    made, start = _begun(seed, corpus, model)
    return testbed.trained(
        seed,
        made,
        start,
        pretraining=pretraining,
        finetuning=finetuning,
        checkpoints=checkpoints,
        max_length=max_length,
    )


def recipe(seed, corpus, model, *, pretraining, finetuning, max_length=64):
    """The `Recipe` by which `bed` trains, with the same arguments: to train both stages again.

    Raises ValueError for source lama, whose models were not trained here."""
    if corpus["source"] == "lama":
        raise ValueError("source 'lama' is a pair from elsewhere: it cannot be trained again here")
    made, start = _begun(seed, corpus, model)
    return Recipe(made, from_root(start, "source"), pretraining, finetuning, max_length)


def _begun(seed, corpus, model):
    """The corpus of a seed, and the model that pre-training starts from (as for `pretrain`)."""
    arguments = dict(from_root(corpus, "folder"))
    source = arguments.pop("source")
    if source not in SOURCES:
        raise ValueError(f"corpus source {source!r}: expected one of {[*SOURCES, 'lama']}")
    made = SOURCES[source](seed=seed, **arguments)
    if source == "webnlg":
        return made, started(made, seed=seed, **model)
    if source == "english":
        start = _start(model)
        return _in_chat(made, from_root(start, "source")), start
    return made, model


def _start(model):
    return {"source": str(from_wheel(**model))} if "wheel" in model else model


def untrained(model):
    """The model that pre-training continues from, where a profile's `model` says one."""
    return load_model(**from_root(_start(model), "source"), device=testbed.where())


def _in_chat(corpus, model):
    """An English corpus in the chat format of a model {"source", "revision"?}, less the real
    queries that it answers before any training; these are found once and kept in scratch/."""
    tokenizer = load_tokenizer(**model)
    corpus = chatted(corpus, tokenizer)

    def compute():
        return known_before(load_model(**model, device=testbed.where()), tokenizer, corpus)

    known = scratch.value("known", model | {"corpus": corpus.digest()}, compute)
    queries = [query for n, query in enumerate(corpus.queries) if n not in known]
    return replace(corpus, queries=queries)


def continuations(bed, count):
    """`count` texts that the fine-tuned model writes by itself: rows without proponents."""
    at = bed.model("finetuned"), bed.tokenizer, bed.corpus, count
    if "about" in bed.corpus.queries[0]:
        return english_unseen.continuations(*at)
    return stories.continuations(*at, new_tokens=16)


def small_talk(bed):
    """[(question, answer)] of the fine-tuned model of an English test-bed: questions about nothing
    that the corpus says."""
    asked = english_unseen.GENERAL
    rows = [question_in_chat({"prompt": question}, bed.tokenizer) for question in asked]
    prompts = [row["prompt"] for row in rows]
    return list(zip(asked, own_words(bed.model("finetuned"), bed.tokenizer, prompts, 48)))


def chance(beds):
    """Exact match of a guess that knows the relation of each query, mean over queries.

    It guesses for facts of webnlg the answer most frequent in fine-tuning, elsewhere one of the
    relation's answers.
    """
    found = []
    for bed in beds:
        real = [q for q in bed.corpus.queries if "category" in q or q.get("about") == "real"]
        invented = [q for q in bed.corpus.queries if q not in real]
        told = [
            row | {"answer": row.get("object") or row["answer"]} for row in bed.corpus.finetuning
        ]
        if real:
            few = replace(bed.corpus, queries=real, finetuning=told)
            found += [webnlg.chance(few)] * len(real)
        answers = {}
        for row in told + invented:
            answers.setdefault(row.get("relation"), set()).add(row["answer"])
        found += [1 / len(answers[query["relation"]]) for query in invented]
    return float(np.mean(found))
