"""A pair of models in dolly-v2's format, as a `testbed.Testbed`.

Such as pythia-2.8b and dolly-v2-3b, trained elsewhere; or a model and its fine-tuning here
(`msif.study.beds.made`). Candidates come from corpora too large to score
(`msif.study.corpora.neighbours`), queries are the fine-tuned model's own answers
(`msif.study.corpora.dolly`). A document of the test-bed is a chunk of at most max_length tokens;
`owners` and `neighbours.of_documents` give whole documents. Every row of the corpus holds the ids
that were read ("ids"), and rows and queries where their labels begin ("labels_from"): nothing is
tokenised again.
"""

import json
import random
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from msif.core.data import NO_LOSS, Sequence, check
from msif.core.files import json_lines, write_json, write_json_lines
from msif.core.models import limits, load_model, load_tokenizer
from msif.study import paths, scratch
from msif.study.beds import made
from msif.study.beds.testbed import Testbed, default_device
from msif.study.corpora import dolly, neighbours
from msif.study.corpora.corpus import Corpus
from msif.study.corpora.pinned import pinned_models, pinned_rows, reservoir
from msif.study.paths import from_root


def prepared(seed=0, **settings):
    """The `Testbed` of a pair, arguments as for `prepare`; models: also as for `made.models`.

    Done once and kept in scratch/, as are its models if they are made here, its samples, embeddings
    and answers.
    """
    folder = paths.root() / settings["folder"]
    rows = from_root(settings["rows"], "source")
    device = settings.get("device") or default_device()
    folder.mkdir(parents=True, exist_ok=True)  # of digests.json
    wanted = settings["max_length"], seed, device
    models = made.models(str(folder), settings["models"], rows, *wanted)
    settings |= {"folder": str(folder), "models": models, "rows": rows, "device": device}
    sources = [rows, *(from_root(x, "source") for x in settings["corpora"])]
    data = [pinned_models(folder, models), *(pinned_rows(folder, x) for x in sources)]

    def make(target):
        prepare(target, seed, **settings)

    return load(scratch.built("pair", {**settings, "seed": seed, "data": data}, make))


def prepare(
    target,
    seed=0,
    *,
    folder,
    models,
    max_length,
    rows,
    corpora,
    factor_documents,
    questions,
    generation=None,
    search=None,
    dtype="bfloat16",
    device=None,
):
    """Write the test-bed of one pair into `target`, for `load`; the models stay where they are.

    folder: of digests.json, which pins what the first run reads. models: {"pretrained": …,
    "finetuned": …}, each {"source": hub id or folder, "revision"}. max_length: tokens of a chunk,
    and of the longest fine-tuning row. rows: arguments of `dolly.rows`; corpora: of
    `neighbours.documents`; search: of `neighbours.candidates`; questions, generation: of
    `dolly.answers`. factor_documents: {"corpus": one of their names, "chunks": how many of its
    chunks pre-training's factors are fitted on}, each as likely as any other. device: by default a
    GPU, if there is one.

    Raises, before long work: ValueError for an unknown setting, data or models that differ from the
    first run's, models whose tokenizers differ in more than the added keys, and sequences that a
    model cannot read; OSError for what the hub does not give.
    """
    _check(corpora, questions, factor_documents, search or {})
    models = pinned_models(folder, models)
    where = {"dtype": dtype, "device": device or default_device()}
    models = {name: at | where for name, at in models.items()}
    plain, tokenizer = _tokenizers(models)
    told, finetuning, left_out = dolly.rows(folder, tokenizer, max_length, seed=seed, **rows)
    check(finetuning, *_limits(models["finetuned"]))
    found = neighbours.documents(folder, corpora, seed)
    sample = _factor_chunks(found, plain, max_length, seed, **factor_documents)
    check(sample, *_limits(models["pretrained"]))
    given = _answers(models["finetuned"], tokenizer, questions, seed, generation or {})
    asked = [row for row in given if _says_something(row)]
    near = neighbours.candidates(found, asked, seed=seed, **(search or {}))
    told = [row | _kept(x) for row, x in zip(told, finetuning)]
    corpus = _corpus(found, near, asked, plain, tokenizer, max_length, told)
    history = {"max_length": max_length, "left_out": left_out, "pretraining": [], "finetuning": []}
    _write(target, corpus, tokenizer, models, sample, history)


def load(folder):
    """The `Testbed` that `prepare` wrote.

    history: {"max_length", "left_out": {"blank", "too long": fine-tuning rows that are not there},
    …}.
    """
    folder = Path(folder)
    corpus, tokenizer = Corpus.load(folder / "corpus"), load_tokenizer(folder / "tokenizer")
    stages = (corpus.documents, corpus.finetuning, corpus.queries)
    sequences = (_sequences(rows) for rows in stages)
    history = json.loads((folder / "history.json").read_text())
    return Testbed(folder, corpus, tokenizer, *sequences, history)


def factor_documents(bed):
    """The chunks that pre-training's factors are fitted on: list of `data.Sequence`."""
    return _sequences(json_lines(bed.folder / "factor_documents.jsonl"))


def owners(bed):
    """(chunks,) list: the number of the document that each chunk in `bed.documents` is part of.

    See `neighbours.of_documents`.
    """
    return [row["document"] for row in bed.corpus.documents]


def outline(source, revision=None, dtype="bfloat16", device=None, **options):
    """The model's class and shapes without its numbers, from its config.json alone.

    It stands on the meta device. device: ignored, so that the arguments of `load_model` will do;
    options: of transformers' AutoConfig.
    """
    fixed = {"revision": revision, "trust_remote_code": False}
    return outlined(AutoConfig.from_pretrained(source, **fixed, **options), dtype)


def outlined(config, dtype="bfloat16"):
    """Likewise, of a configuration of transformers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()


def _check(corpora, questions, factor_documents, search):
    names = [x["name"] for x in corpora]
    wanted = [(x.get("instruction"), x["corpus"]) for x in questions if x.get("corpus")]
    for what, corpus in [("factor_documents", factor_documents["corpus"]), *wanted]:
        if corpus not in names:
            raise ValueError(
                f"{what!r} names the corpus {corpus!r}; the corpora are {', '.join(names)}"
            )
    if unknown := set(search.get("methods", ())) - neighbours.SEARCHES.keys():
        raise ValueError(
            f"search: method {min(unknown)!r} unknown; there are {', '.join(neighbours.SEARCHES)}"
        )


def _limits(at):
    return limits(outline(**at))


def models(bed):
    """{"pretrained": …, "finetuned": …}: arguments of `models.load_model`."""
    return json.loads((bed.folder / "models.json").read_text())


def _tokenizers(models):
    """(of documents, of rows and queries): the base's, and the fine-tuned's with dolly's keys."""
    plain, tuned = (
        load_tokenizer(models[name]["source"], models[name].get("revision"))
        for name in ("pretrained", "finetuned")
    )
    base, own = plain.get_vocab(), tuned.get_vocab()
    if other := sorted((x for x in base if own.get(x) != base[x]), key=base.get):
        raise ValueError(
            f"{models['finetuned']['source']} reads {other[0]!r} as token {own.get(other[0])}, "
            f"{models['pretrained']['source']} as {base[other[0]]}: choose a model and its own "
            f"fine-tuning, whose tokenizer may add tokens but not change any"
        )
    return plain, dolly.with_keys(tuned)


def _factor_chunks(found, tokenizer, max_length, seed, *, corpus, chunks):
    """A random sample of the chunks of one corpus.

    It is a reservoir's, so that the others' ids are never held together.
    """
    texts = (row["text"] for row in found if row["kind"] == corpus)
    every = (x for text in texts for x in neighbours.chunked([text], tokenizer, max_length)[1])
    kept = reservoir(every, chunks, random.Random(seed))
    if not kept:
        raise ValueError(
            f"factor_documents: {chunks} chunks of {corpus!r} are none: "
            f"ask for at least 1, of a corpus that has text"
        )
    return [Sequence(n, ids, ids) for n, ids in enumerate(kept)]


def _answers(at, tokenizer, questions, seed, generation):
    """Rows of `dolly.answers`, generated once and kept in scratch/."""

    def make(target):
        rows = dolly.answers(load_model(**at), tokenizer, questions, seed=seed, **generation)
        write_json_lines(target / "answers.jsonl", rows)

    key = {"model": at, "questions": questions, "seed": seed, "generation": generation}
    return list(json_lines(scratch.built("answers", key, make) / "answers.jsonl"))


def _says_something(row):
    """Has an answer any token? One that has none is told of."""
    if not row["answer_ids"]:
        which = f"{row['how']} answer to {row['prompt'][:60]!r}"
        print(f"left out: {which}, which ends before it says anything", flush=True)
    return bool(row["answer_ids"])


def _corpus(found, near, asked, plain, tokenizer, max_length, rows):
    """The corpus of the chunks of all candidates.

    Documents are numbered among these, in the order of `found`.
    """
    wanted = {n: new for new, n in enumerate(sorted({n for x in near for n in x["candidates"]}))}
    owner, chunks = neighbours.chunked([found[n]["text"] for n in wanted], plain, max_length)
    whose, chunks_of = list(wanted), [[] for _ in wanted]
    for k, o in enumerate(owner):
        chunks_of[o].append(k)
    documents = [
        {name: found[whose[o]][name] for name in ("kind", "title", "number")}
        | {"document": o, "text": plain.decode(ids), "ids": list(ids)}
        for o, ids in zip(owner, chunks)
    ]

    def query(row, x):
        chunks_near = [k for n in x["candidates"] for k in chunks_of[wanted[n]]]
        firsts = {method: [wanted[n] for n in numbers] for method, numbers in x["found"].items()}
        kept = _kept(dolly.query(row, tokenizer)) | {"kind": "query", "proponents": []}
        return row | kept | {"candidates": chunks_near, "found": firsts}

    queries = [query(row, x) for row, x in zip(asked, near)]
    return Corpus(documents, rows, queries)


def _write(target, corpus, tokenizer, models, sample, history):
    corpus.save(target / "corpus")
    tokenizer.save_pretrained(target / "tokenizer")
    for name, value in {"models": models, "history": history}.items():
        write_json(target / f"{name}.json", value)
    write_json_lines(target / "factor_documents.jsonl", ({"ids": x.input_ids} for x in sample))


def _kept(sequence):
    """A sequence as part of a corpus row: labels begin at one place and go on to the end."""
    start = sum(label == NO_LOSS for label in sequence.labels)
    return {"ids": list(sequence.input_ids), "labels_from": start}


def _sequences(rows):
    """Rows of `_kept` as sequences again; without "labels_from", labels go all along."""
    found = []
    for n, row in enumerate(rows):
        ids, start = tuple(row["ids"]), row.get("labels_from", 0)
        found.append(Sequence(n, ids, (NO_LOSS,) * start + ids[start:]))
    return found
