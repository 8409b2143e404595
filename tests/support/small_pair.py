"""pythia-2.8b and dolly-v2-3b at small size: the same architecture, tokenizer,
formats and file layouts, so that nothing but parameters differs."""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from msif.core.data import encode_documents
from msif.core.models import load_model
from msif.study.beds.training import train
from msif.study.corpora import dolly
from support import DATA

NEEDED = (
    "pythia-tokenizer/tokenizer.json",
    "dolly/dolly-first-6400.jsonl",
    "wikitext2/wiki.valid.txt",
    "wikitext2/wiki.test.txt",
)
CARD = """---
configs:
- config_name: 20231101.en
  data_files:
  - split: train
    path: train.jsonl
---
"""  # of a data set with one of several configurations, as on the hub
needs_data = pytest.mark.skipif(
    bool([x for x in NEEDED if not (DATA / x).exists()]),
    reason=f"{DATA} lacks one of {', '.join(NEEDED)}",
)


def articles(name, limit):
    """[{"title", "text"}] of WikiText, one a heading of the first level."""
    text = (DATA / "wikitext2" / name).read_text("utf-8")
    parts = re.split(r"^ = ([^=\n]+) = \n", text, flags=re.M)[1:]
    found = [{"title": title, "text": body.strip()} for title, body in zip(parts[::2], parts[1::2])]
    return found[:limit]


def jsonl(path, rows):
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def architecture(vocab_size, width=32, layers=2):
    """GPT-NeoX as pythia-2.8b and dolly-v2-3b are: rotary on a quarter of each head,
    parallel residual, two embeddings."""
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=256,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(config).float().eval()


def tokenizer_files(folder, tokenizer):
    """As the hub has them: tokenizer.json, and a config that names the class."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPTNeoXTokenizer",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def build(folder, dtype="float32"):
    """The files of a pair in `folder`, which becomes a study of its own;
    returns the settings of `pairs.prepared`."""
    (folder / "dvc.yaml").touch()
    for name, source, limit in (("wikipedia", "wiki.valid.txt", 12), ("pile", "wiki.test.txt", 12)):
        (folder / name).mkdir()
        rows = [row | {"text": row["text"][:500]} for row in articles(source, limit)]
        jsonl(
            folder / name / "train.jsonl",
            rows if name == "wikipedia" else [{"text": row["text"]} for row in rows],
        )
    (folder / "wikipedia" / "README.md").write_text(CARD)
    published = (DATA / "dolly" / "dolly-first-6400.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(published[:30]))
    plain = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "pythia-tokenizer" / "tokenizer.json")
    )
    keys = dolly.with_keys(plain)
    net = architecture(50304)
    texts = [x["text"][:300] for x in articles("wiki.test.txt", 8)]
    train(net, encode_documents(texts, plain, 64), epochs=1, rate=3e-3, batch_size=4)
    net.to(getattr(torch, dtype)).save_pretrained(folder / "base")
    rows = dolly.rows(folder, keys, 64, source=str(folder / "rows.jsonl"), limit=10)[1]
    net = load_model(folder / "base")
    net.resize_token_embeddings(len(keys))  # 50,304 rows -> 50,280, as dolly-v2-3b has
    train(net, rows, epochs=2, rate=3e-3, batch_size=4)
    net.to(getattr(torch, dtype)).save_pretrained(folder / "tuned")
    tokenizer_files(folder / "base", plain)
    tokenizer_files(folder / "tuned", keys)
    return {
        "folder": "pinned",
        "models": {"pretrained": {"source": "base"}, "finetuned": {"source": "tuned"}},
        "dtype": dtype,
        "max_length": 64,
        "device": "cpu",
        "rows": {"source": "rows.jsonl", "limit": 14},
        "corpora": [
            {"name": "wikipedia", "source": "wikipedia", "config": "20231101.en", "limit": 6},
            {"name": "pile", "source": "pile", "files": "*.jsonl", "limit": 6},
        ],
        "factor_documents": {"corpus": "pile", "chunks": 8},
        "questions": [
            {"instruction": "Which animals does the story speak of?"},
            {"instruction": "Who wrote it?", "corpus": "wikipedia"},
            {
                "instruction": "What is it?",
                "context": "A lobster is a crustacean.",
                "answer": "A crustacean.",
            },
        ],
        "generation": {"samples": 1, "max_new_tokens": 6},
        "search": {"methods": ["bm25", "tfidf"], "first": 2, "random": 1},
    }


def to_tune(folder):
    """A small Llama as SmolLM2 is, tied embeddings and grouped keys, in `folder`, which becomes a
    study of its own with data/; returns the settings of `pairs.prepared` that fine-tune it there
    and trace it among paragraphs of WikiText."""
    (folder / "dvc.yaml").touch()
    (folder / "data").symlink_to(DATA)
    plain = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "pythia-tokenizer" / "tokenizer.json")
    )
    config = LlamaConfig(
        vocab_size=len(plain),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer_files(folder / "base", plain)
    training = {"epochs": 2, "rate": 3e-3, "batch_size": 4, "by_length": True}
    return {
        "folder": "scratch/pinned",
        "models": {
            "pretrained": {"source": "base"},
            "finetuned": {"finetuning": training},
        },
        "dtype": "float32",
        "max_length": 64,
        "device": "cpu",
        "rows": {"source": "data/dolly/dolly-first-6400.jsonl", "limit": 20},
        "corpora": [
            {
                "name": "wikitext",
                "source": "data/wikitext2",
                "paragraphs": "wiki.*.txt",
                "limit": 30,
            }
        ],
        "factor_documents": {"corpus": "wikitext", "chunks": 8},
        "questions": [{"instruction": "Who was Du Fu?"}, {"instruction": "Why?"}],
        "generation": {"samples": 1, "max_new_tokens": 6},
        "search": {"methods": ["bm25"], "first": 3, "random": 3},
    }


@contextmanager
def inside(folder):
    """The working directory is `folder` for as long as the block runs."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
