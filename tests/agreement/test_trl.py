"""A pair's gradient is that of trl's DPO on the same rows, by trl's own trainer: its rendering of
the conversations, its batches, its loss.

Both models are in float64, but trl takes the log-probabilities in float32 whatever the model is in,
so that the gradients differ by that (measured: 4e-7 of their norm).
"""

import pytest
import torch
from support.tokenizers_of_kinds import CHAT, INST, MARKED, byte_level, like_llama
from transformers import LlamaConfig, LlamaForCausalLM

from msif.core import capture, forms, preferences
from msif.core.conversations import encode, encode_pairs
from msif.core.data import encode_answers
from msif.core.layers import tracked

pytest.importorskip("trl", reason="optional: pip install --no-deps trl==1.16.0")

import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

TEXTS = ["system user assistant Where was Ada born ? Paris London [INST] [/INST] ( ) : .", "\nA7a"]
TOKENIZERS = {
    "chatml": byte_level(TEXTS, CHAT),
    "marked": byte_level(TEXTS, MARKED),
    "inst": like_llama(TEXTS, INST, scheme="first"),
}
B, TOLERANCE = 0.3, 5e-6


def user(text):
    return {"role": "user", "content": text}


def told(text):
    return {"role": "assistant", "content": text}


FIRST = [user("Where was Ada born ?"), told("London"), user("Where ?")]
PARTED = [
    {"prompt": FIRST, "chosen": [told("Paris .")], "rejected": [told("London London .")]},
    {"prompt": [user("Ada ?")], "chosen": [told("Ada was Ada")], "rejected": [told("( )")]},
]
WHOLE = [{x: [*row["prompt"], *row[x]] for x in ("chosen", "rejected")} for row in PARTED]


def llama(seed, tokenizer):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=len(tokenizer),
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("rows", [PARTED, WHOLE], ids=["prompt", "whole"])
def test_gradients_of_pairs_are_trl_s(name, rows, tmp_path):
    tokenizer = TOKENIZERS[name]
    end, start = llama(0, tokenizer), llama(1, tokenizer)
    pairs = encode_pairs(rows, tokenizer, 999)
    net = tracked(end)
    objective = preferences.against(start, pairs, B)
    found = capture.gradients(net, pairs, objective)
    mean = capture.mean_gradient(net, pairs, objective)

    args = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=B,
        per_device_train_batch_size=len(rows),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=False,
        report_to=[],
    )
    trainer = trl.DPOTrainer(
        model=end,
        ref_model=start,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    read = [trainer.train_dataset[n] for n in range(len(rows))]
    for pair, x in zip(pairs, read):
        for side in ("chosen", "rejected"):
            row = getattr(pair, side)
            assert list(row.input_ids) == [*x["prompt_ids"], *x[f"{side}_ids"]]
            assert sum(y >= 0 for y in row.labels) == len(x[f"{side}_ids"])
    for few, expected in ((read[:1], {n: y[0] for n, y in found.items()}), (read, mean)):
        end.zero_grad()
        loss = trainer.compute_loss(end, trainer.data_collator(few))
        loss.backward()
        for layer, gradient in expected.items():
            theirs = end.get_parameter(f"{layer}.weight").grad
            assert (gradient - theirs).norm() < TOLERANCE * theirs.norm()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_of_text_before_conversations_is_what_trl_extracts(name):
    """As in UltraFeedback; trl's trainer is given such rows after this."""
    named = [{**row, "prompt": row["chosen"][0]["content"]} for row in WHOLE]
    extracted = [trl.maybe_extract_prompt(dict(row)) for row in named]
    tokenizer = TOKENIZERS[name]
    assert encode_pairs(named, tokenizer, 999) == encode_pairs(extracted, tokenizer, 999)


COMPLETED = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PARTED]
TEXTUAL = [
    {"prompt": "Where was Ada born ?", "completion": " Paris"},
    {"prompt": "a", "completion": "b"},
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("rows", [COMPLETED, TEXTUAL], ids=["messages", "text"])
def test_completions_have_trl_s_tokens_and_labels(name, rows, tmp_path):
    tokenizer = TOKENIZERS[name]
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    trainer = trl.SFTTrainer(
        model=llama(0, tokenizer),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    read = forms.read(rows, ("prompt", "answer"))
    if isinstance(read, forms.Chats):
        found = encode(read.conversations, tokenizer, 999, read.loss)
    else:
        between = {"separator": "", "closing": tokenizer.eos_token}
        found = encode_answers(*zip(*read), tokenizer, 999, **between)
    for row, theirs in zip(found, trainer.train_dataset):
        assert list(row.input_ids) == theirs["input_ids"]
        assert list(row.labels) == theirs["labels"]
