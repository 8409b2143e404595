"""A pair of tiny BLOOM models in the hub's layout, with LAMA and T-REx in miniature."""

from contextlib import contextmanager

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from msif.study.beds import testbed
from msif.study.beds.training import train
from msif.study.corpora import lama, trex
from support.lama_miniature import miniature, tokenizer

COMMITS = {"tiny/bloom": "a" * 40, "tiny/bloomz": "b" * 40}
SETTINGS = {
    "max_length": 32,
    "queries": 20,
    "factor_documents": 30,
    "first": 5,
    "same_object": 4,
    "shared": 20,
}


def cached(hub, name, net, reader):
    """What a download leaves in the hub's cache: a snapshot named by its commit,
    and what `main` stands for."""
    at = hub / f"models--{name.replace('/', '--')}"
    net.save_pretrained(at / "snapshots" / COMMITS[name])
    reader.save_pretrained(at / "snapshots" / COMMITS[name])
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text(COMMITS[name])


@contextmanager
def bloom_study(root):
    """(folder of the data, settings of `given.prepared`) in a study of its own in `root`,
    with both models in the hub's cache."""
    import huggingface_hub.constants as constants

    (root / "dvc.yaml").touch()
    folder = miniature(root / "data")
    reader = tokenizer(folder)
    torch.manual_seed(0)
    net = BloomForCausalLM(
        BloomConfig(
            vocab_size=len(reader),
            hidden_size=32,
            n_layer=2,
            n_head=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
        sentences = trex.statements(folder, trex.read_facts(folder))
        train(
            net,
            testbed.encode_documents([x["text"] for x in sentences], reader, 32),
            epochs=20,
            rate=5e-3,
            batch_size=8,
        )
        # names as BLOOM's own files have them, without a prefix
        cached(root / "hub", "tiny/bloom", net.transformer, reader)
        rows = lama.fine_tuning_rows(folder, reader, 32, source=str(folder / "xp3.jsonl"), limit=60)
        asked = testbed.encode_answers(
            [r["prompt"] for r in rows], [r["answer"] for r in rows], reader, 32
        )
        train(net, asked, epochs=1, rate=1e-3, batch_size=8)
        cached(root / "hub", "tiny/bloomz", net, reader)
        yield (
            folder,
            {
                "folder": "data",
                "models": {
                    "pretrained": {"source": "tiny/bloom", "revision": "main"},
                    "finetuned": {"source": "tiny/bloomz", "revision": "main"},
                },
                "finetuning": {"source": "data/xp3.jsonl", "limit": 60},
                **SETTINGS,
            },
        )
