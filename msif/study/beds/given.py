"""A pair of models that was trained elsewhere, as a `testbed.Testbed`.

Its corpus: LAMA's facts and T-REx's sentences.
"""

from dataclasses import replace
from pathlib import Path

from msif.core.data import check
from msif.core.files import write_json
from msif.core.models import limits, load_tokenizer
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.corpora.lama import fine_tuning_rows, lama_corpus
from msif.study.corpora.pinned import pinned_models, pinned_rows
from msif.study.corpora.trex import lama_files, trex_files
from msif.study.paths import from_root


def prepared(seed, **settings):
    """The `Testbed` of one experiment, done once and kept in scratch/; arguments: of `prepare`."""
    folder = from_root({"folder": str(settings["folder"])}, "folder")["folder"]
    finetuning = from_root(settings["finetuning"], "source")
    models = {name: from_root(model, "source") for name, model in settings["models"].items()}
    device = settings.get("device") or testbed.default_device()  # another machine may have another
    settings |= {"folder": folder, "finetuning": finetuning, "models": models, "device": device}
    data = [
        lama_files(folder),
        trex_files(folder),
        pinned_rows(folder, finetuning),
        pinned_models(folder, models),
    ]

    def make(target):
        prepare(target, seed, **settings)

    key = {**settings, "seed": seed, "data": data}
    return testbed.load(scratch.built("lama-testbed", key, make))


def prepare(
    target, seed, *, folder, models, finetuning, max_length, dtype="float32", device=None, **corpus
):
    """Write the test-bed of one experiment into `target`, for `testbed.load`.

    The models stay where they are. models: {"pretrained": …, "finetuned": …}, each {"source": hub
    id or folder, "revision": of a hub id}; the commit that the first run finds behind a revision is
    what models.json and all later runs load. finetuning: arguments of `fine_tuning_rows`. folder:
    the data; corpus: further arguments of `lama_corpus`. max_length: tokens. device: by default a
    GPU, if there is one.

    Raises, before long work: FileNotFoundError that says what to put where; ValueError for data or
    models that differ from the first run's, an unknown relation, a missing question, or two models
    that do not share a tokenizer; OSError for what the hub does not give.
    """
    models = pinned_models(folder, models)
    where = {"dtype": dtype, "device": device or testbed.default_device()}
    models = {name: at | where for name, at in models.items()}
    tokenizer = _shared_tokenizer(models)
    pinned_rows(folder, finetuning)
    found = lama_corpus(folder, seed, **corpus)
    rows = fine_tuning_rows(folder, tokenizer, max_length, seed=seed, **finetuning)
    given(target, replace(found, finetuning=rows), models, tokenizer, max_length)


def given(folder, corpus, models, tokenizer, max_length):
    """Write the test-bed of a pair of models that was trained elsewhere; nothing is copied.

    models: {"pretrained": …, "finetuned": …}, the arguments of `load_model` (source, revision,
    dtype, device) as JSON values. tokenizer: of both. Raises ValueError for other names and for
    sequences that a model cannot read.
    """
    if set(models) != {"pretrained", "finetuned"}:
        raise ValueError(f"models are {sorted(models)}; expected finetuned and pretrained")
    folder = Path(folder)
    corpus.save(folder / "corpus")
    tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "models.json", models)
    untrained = {"max_length": max_length, "pretraining": [], "finetuning": []}
    write_json(folder / "history.json", untrained)
    bed = testbed.load(folder)
    for name in models:
        where = limits(bed.model(name))
        for sequences in (bed.documents, bed.finetuning, bed.queries):
            check(sequences, *where)


def _shared_tokenizer(models):
    first, second = (
        load_tokenizer(models[name]["source"], models[name]["revision"])
        for name in ("pretrained", "finetuned")
    )
    if first.get_vocab() != second.get_vocab():
        raise ValueError(
            f"{models['pretrained']['source']} and {models['finetuned']['source']} have different "
            f"vocabularies: a document and a query must be read by one tokenizer; choose a model "
            f"and its own fine-tuning"
        )
    return first
