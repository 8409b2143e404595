"""A trained two-stage test-bed in one folder: corpus, tokenizer, checkpoints, models θ₁ and θ₂.

    corpus/  tokenizer/  checkpoint-<epoch>/  pretrained/  finetuned/  history.json

Models are saved in the Hugging Face layout, so every later step loads them as it would any other
pair of models. A pair that was trained elsewhere (`given`) stays where it is: models.json says
where, in which precision and on which device.
"""

import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch

from msif.core.data import check, encode_answers, encode_documents, split_answer, word_tokenizer
from msif.core.files import Busy, exclusive
from msif.core.generation import greedy
from msif.core.model_digest import model_digest
from msif.core.models import limits, load_model, load_tokenizer, tiny_gpt_neox
from msif.core.resources import require
from msif.study import scratch
from msif.study.beds.training import train
from msif.study.corpora.corpus import Corpus
from msif.study.paths import from_root


@dataclass(frozen=True)
class Testbed:
    """A corpus with its tokenizer and its models.

    documents, finetuning, queries: tokenised (`data.Sequence`) rows of the corpus, in its order.
    history: losses.
    """

    folder: Path
    corpus: Corpus
    tokenizer: object
    documents: list
    finetuning: list
    queries: list
    history: dict

    def model(self, name, dtype="float32", device=None):
        """θ₁ "pretrained", θ₂ "finetuned", or "checkpoint-<epoch>" of pre-training.

        device: by default `where`. A `given` one comes as models.json says, whatever `dtype` and
        `device` are.
        """
        if (elsewhere := self.folder / "models.json").exists():
            return load_model(**json.loads(elsewhere.read_text())[name])
        return load_model(self.folder / name, dtype, device or where())

    @property
    def checkpoints(self):
        """Names of the pre-training models in the order of training, θ₁ last."""
        epochs = sorted(int(p.name.split("-")[1]) for p in self.folder.glob("checkpoint-*"))
        return [f"checkpoint-{epoch}" for epoch in epochs] + ["pretrained"]


def where():
    """The device of models that are trained here: MSIF_DEVICE, such as "cuda"; else the CPU, so
    that a study has the same numbers on a machine with a GPU and on one without. Raises ValueError
    for a device that torch does not know or find."""
    return _asked_for() or "cpu"


def default_device():
    """The device of a pair from elsewhere: MSIF_DEVICE, as `where`; else a GPU, if there is one."""
    return _asked_for() or ("cuda" if torch.cuda.is_available() else "cpu")


def _asked_for():
    name = os.environ.get("MSIF_DEVICE")
    try:
        if name and torch.device(name).type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no such GPU")
    except RuntimeError as error:
        raise ValueError(
            f"MSIF_DEVICE is {name!r}: {error}; expected a device of this machine, such as cpu or "
            "cuda, or no such variable"
        ) from error
    return name


def build(folder, corpus, *, finetuning, **settings):
    """Train both stages into `folder`: `pretrain` with these settings, then `finetune`."""
    pretrain(folder, corpus, finetuning=finetuning, **settings)
    finetune(folder, finetuning, settings.get("seed", 0))


def pretrain(
    folder,
    corpus,
    *,
    model,
    pretraining,
    finetuning,
    checkpoints=(),
    max_length=64,
    seed=0,
    state=None,
):
    """Train the first stage into `folder`, after checking what both stages will need.

    corpus: a `Corpus`. model: {"source": hub id or folder} to continue from real weights, or the
    arguments of `tiny_gpt_neox`. pretraining, finetuning: the arguments of `training.train`.
    checkpoints: epochs of pre-training to keep. `finetuning` is only checked. state: a folder that
    keeps what a killed training goes on from, until it is done. Raises TypeError for
    an unknown setting of training, ValueError for sequences that the model cannot read or a
    checkpoint after the last epoch, OSError for too little disk.
    """
    folder = Path(folder)
    for settings in (pretraining, finetuning):
        signature(train).bind(None, None, **settings)
    last = pretraining["epochs"]
    if wrong := [epoch for epoch in checkpoints if not 1 <= epoch <= last]:
        raise ValueError(
            f"checkpoints {wrong}: expected epochs from 1 to {last}, the last of pre-training"
        )
    corpus.save(folder / "corpus")
    tokenizer, net = start(corpus, model, seed)
    tokenizer.save_pretrained(folder / "tokenizer")
    documents, rows, queries = encode(corpus, tokenizer, max_length)
    for sequences in (documents, rows, queries):
        check(sequences, *limits(net))
    size = sum(p.nbytes for p in net.parameters())
    disk, what = (2 + len(checkpoints)) * size, "training and keeping both stages"
    require(disk=disk, memory=4 * size, folder=folder, what=what)

    kept = Path(state or folder)

    def keep(epoch, net):
        if epoch in checkpoints:
            net.save_pretrained(kept / f"checkpoint-{epoch}")

    settings = {"seed": seed, "title": "pre-training", **pretraining}
    losses = train(net, documents, after_epoch=keep, state=_file(state), **settings)
    net.save_pretrained(folder / "pretrained")
    if state:
        for epoch in checkpoints:
            shutil.move(kept / f"checkpoint-{epoch}", folder / f"checkpoint-{epoch}")
        shutil.rmtree(state, ignore_errors=True)
    history = {"max_length": max_length, "pretraining": losses}
    (folder / "history.json").write_text(json.dumps(history))


def finetune(folder, finetuning, seed=0, state=None):
    """Train the second stage of a folder that `pretrain` wrote; state: as there."""
    bed = load(folder)
    net = bed.model("pretrained")
    settings = {"seed": seed, "title": "fine-tuning", **finetuning}
    losses = train(net, bed.finetuning, state=_file(state), **settings)
    net.save_pretrained(bed.folder / "finetuned")
    if state:
        shutil.rmtree(state, ignore_errors=True)
    history = json.loads((bed.folder / "history.json").read_text()) | {"finetuning": losses}
    (bed.folder / "history.json").write_text(json.dumps(history))


def _file(state):
    return state and Path(state) / "state.pt"


def trained(seed, corpus, model, finetuning, **settings):
    """The `Testbed` of one seed, each stage trained once and kept in scratch/.

    Arguments as for `build`. A relative model folder is meant from the study's root.
    """
    model = from_root(model, "source")
    digests = {"corpus": corpus.digest(), "start": start_digest(model)}
    named = {"model": model, "seed": seed} | digests
    key = {**settings, **named}

    def first(folder):
        given = {"model": model, "finetuning": finetuning, "seed": seed, **settings}
        with resumable(key) as state:
            pretrain(folder, corpus, state=state, **given)

    pretrained = scratch.built("pretrained", key, first)

    def second(folder):
        shutil.copytree(pretrained, folder, dirs_exist_ok=True)
        with resumable(whole) as state:
            finetune(folder, finetuning, seed, state)

    whole = key | {"finetuning": finetuning}
    return load(scratch.built("testbed", whole, second))


@contextmanager
def resumable(key):
    """The folder that a killed training of this key goes on from; None while another process trains
    the same, which then each do by themselves."""
    folder = scratch.place("training", key, __name__)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except Busy:
            folder = None
        yield folder


def load(folder):
    """The `Testbed` that `build` wrote."""
    folder = Path(folder)
    corpus, tokenizer = Corpus.load(folder / "corpus"), load_tokenizer(folder / "tokenizer")
    history = json.loads((folder / "history.json").read_text())
    sequences = encode(corpus, tokenizer, history.pop("max_length"))
    return Testbed(folder, corpus, tokenizer, *sequences, history)


def answers(model, tokenizer, rows):
    """Greedy answers of `model` to rows' prompts, as long as the true answers.

    Returns a list of (text, is it the answer?).
    """
    pairs = [split_answer(row["prompt"], row["answer"], tokenizer) for row in rows]
    longest = max(len(answer) for _, answer in pairs)
    written = greedy(model, [list(prompt) for prompt, _ in pairs], longest)
    found = []
    for ids, (_, answer) in zip(written, pairs):
        cut = ids[: len(answer)]
        found.append((tokenizer.decode(cut).strip(), tuple(cut) == tuple(answer)))
    return found


def whole(rows):
    """Rows whose answer is all that the model is to write: where a row has a `reply`, the words
    that stand before its answer are part of the answer, and no longer of the prompt."""
    return [
        row
        | {
            "prompt": row["prompt"].removesuffix(row["reply"]),
            "answer": f"{row['reply']} {row['answer']}",
        }
        if "reply" in row
        else row
        for row in rows
    ]


def start_digest(model):
    """Digest of the weights that pre-training continues from; None when it starts from scratch."""
    if "source" not in model:
        return None
    return model_digest(load_model(model["source"], revision=model.get("revision")))


def start(corpus, model, seed):
    """(tokenizer, model) before the first step of pre-training; `model` as for `pretrain`."""
    if "source" in model:
        at = {name: model[name] for name in ("source", "revision") if name in model}
        return load_tokenizer(**at), load_model(**at, device=where())
    rows = corpus.finetuning + corpus.queries
    texts = [d["text"] for d in corpus.documents] + [f"{r['prompt']} {r['answer']}" for r in rows]
    tokenizer = word_tokenizer(texts)
    return tokenizer, tiny_gpt_neox(len(tokenizer), seed=seed, **model).to(where())


def encode(corpus, tokenizer, max_length):
    """(documents, fine-tuning rows, queries) of a corpus, tokenised, in its order."""

    def answered(rows):
        prompts, answers = [r["prompt"] for r in rows], [r["answer"] for r in rows]
        return encode_answers(prompts, answers, tokenizer, max_length)

    documents = encode_documents([d["text"] for d in corpus.documents], tokenizer, max_length)
    return documents, answered(corpus.finetuning), answered(corpus.queries)
