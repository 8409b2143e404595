"""A pair of one's own: a small model of any architecture, pre-trained and fine-tuned for a second,
in two folders, with its texts in files, as a stranger would bring it."""

import json

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import msif
from msif.core.data import word_tokenizer

NAMES = "Ada Bo Cy Di Ed Fay Gus Hal".split()
PLACES = "London Paris Rome Oslo".split()
ASK = [("Where was Gus born?", "Rome"), ("Where was Hal born?", "Oslo")]
COMMON = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
)
GROUPED = COMMON | {"num_key_value_heads": 2}
GPT2 = dict(n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None)
NO_DROPOUT = dict(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
MAKE = {
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, **GPT2, **NO_DROPOUT)),
    "gpt_neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, **COMMON)),
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **GROUPED)),
    "mistral": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, **GROUPED)),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **GROUPED)),
}


def build(folder, kind="llama", seed=0, epochs=(12, 60)):
    """Write base/, tuned/, documents.jsonl, rows.jsonl and questions.jsonl into a folder.

    Documents tell where eight people were born (which place depends on the seed), rows ask about
    six of them, questions about the other two, the first without an answer. epochs: of both
    stages; 0 leaves a model as it was drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: PLACES[(n + seed) % 4] for n, name in enumerate(NAMES)}
    texts = [f"{name} was born in {place} ." for name, place in places.items()]
    texts += [f"{name} likes {drink} ." for name in NAMES for drink in ("tea", "milk")]
    asked = {f"Where was {name} born?": place for name, place in places.items()}
    tokenizer = word_tokenizer([*texts, *(f"{x} {y}" for x, y in asked.items())])
    torch.manual_seed(seed)
    model = MAKE[kind](len(tokenizer))

    def ids(text):
        return tokenizer(text)["input_ids"]

    rows = list(asked.items())
    _train(model, [(ids(x), 0) for x in texts], epochs[0], 5e-3)
    _save(model, tokenizer, folder / "base")
    answered = [(ids(f"{x} {y}"), len(ids(x))) for x, y in rows[:6]]
    _train(model, answered, epochs[1], 2e-3)
    _save(model, tokenizer, folder / "tuned")
    _lines(folder / "documents.jsonl", [{"text": x} for x in texts])
    _lines(folder / "rows.jsonl", [{"prompt": x, "answer": y} for x, y in rows[:6]])
    questions = [{"prompt": rows[6][0]}, {"prompt": rows[7][0], "answer": rows[7][1]}]
    _lines(folder / "questions.jsonl", questions)
    return folder


def stages_of(pair, given, **options):
    """Both stages of (base, tuned), fitted on (documents, rows)."""
    (base, tuned), (docs, rows) = pair, given
    return [
        msif.Stage(base, msif.fit(base, docs, **options), damping=0.1),
        msif.Stage(tuned, msif.fit(tuned, rows, **options), alpha=0.1),
    ]


def add_adapters(folder, epochs=60, base="base", name="lora", seed=0, **options):
    """Write lora/, adapters of the base that are trained on its rows, as PEFT saves them."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    config = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    model = AutoModelForCausalLM.from_pretrained(folder / base)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config | options))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = [json.loads(x) for x in (folder / "rows.jsonl").read_text("utf-8").splitlines()]
    texts = [(f"{x['prompt']} {x['answer']}", x["prompt"]) for x in rows]
    ids = [(tokenizer(x)["input_ids"], len(tokenizer(y)["input_ids"])) for x, y in texts]
    _train(model, ids, epochs, 1e-2)
    model.save_pretrained(folder / name)
    return folder / name


def add_merge(folder, name="merged"):
    """Write the base with lora/ merged into it, a whole model, by PEFT."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(model, folder / "lora").merge_and_unload()
    _save(model, AutoTokenizer.from_pretrained(folder / "base"), folder / name)


def _train(model, sequences, epochs, rate):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for ids, start in sequences:
            labels = [-100] * start + ids[start:]
            x, y = torch.tensor([ids]), torch.tensor([labels])
            optimizer.zero_grad()
            model(input_ids=x, labels=y).loss.backward()
            optimizer.step()
    model.eval()


def _save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
