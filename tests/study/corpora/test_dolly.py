"""dolly-v2's format with the Pythia tokenizer; models of dolly's architecture at small size."""

import json

import pytest
import torch
from support import DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from msif.core.data import NO_LOSS, check, collate
from msif.core.models import logits
from msif.core.objectives import log_probability
from msif.study.beds.training import train
from msif.study.corpora import dolly

PYTHIA = DATA / "pythia-tokenizer" / "tokenizer.json"
needs_pythia = pytest.mark.skipif(
    not PYTHIA.exists(), reason=f"{PYTHIA} is not there: the tokenizer of EleutherAI/pythia-2.8b"
)
needs_rows = pytest.mark.skipif(
    not (DATA / "dolly").exists(),
    reason=f"{DATA / 'dolly'} is not there: dolly-first-6400.jsonl of databricks-dolly-15k",
)


def pythia():
    return PreTrainedTokenizerFast(tokenizer_file=str(PYTHIA), eos_token="<|endoftext|>")


def neox(vocab_size=50280, seed=0, **changes):
    """dolly-v2-3b's architecture, 2 layers of width 32."""
    config = GPTNeoXConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 256,
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
            "tie_word_embeddings": False,
        }
        | changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).float().eval()


def bytes_tokenizer():
    """One token a byte: no file needed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({x: n for n, x in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_the_text_is_that_of_the_published_format():
    assert dolly.prompt("Name a tree.") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a tree.\n\n### Response:\n"
    )
    assert dolly.prompt("Who?", "Ann ran.") == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWho?\n\nInput:\nAnn ran.\n\n### Response:\n"
    )


@needs_pythia
def test_keys_become_single_tokens_with_dollys_ids_and_other_text_reads_as_before():
    plain = pythia()
    tokenizer = dolly.with_keys(plain)
    ids = lambda t, text: t(text)["input_ids"]
    assert [ids(tokenizer, key) for key in dolly.KEYS] == [[50277], [50278], [50279]] and len(
        tokenizer
    ) == 50280
    assert all(len(ids(plain, key)) > 1 for key in dolly.KEYS), (
        "the tokenizer that was given is left as it was"
    )
    assert dolly.with_keys(tokenizer) is tokenizer
    text = "A tree: the oak's\n\n    leaves # ## Response"
    assert ids(tokenizer, text) == ids(plain, text)


@needs_pythia
@pytest.mark.parametrize("context", [None, "Oaks and elms are trees."])
def test_defect_12_the_loss_is_on_the_response_and_its_end_alone(context):
    """Prompt and keys are masked, in the one tokenisation of the whole text."""
    tokenizer = dolly.with_keys(pythia())
    found = dolly.encoded("Name two trees.", "Oak and elm.", tokenizer, context, index=7)
    whole = tokenizer(dolly.prompt("Name two trees.", context) + "Oak and elm.\n\n### End")[
        "input_ids"
    ]
    assert found.index == 7 and list(found.input_ids) == whole
    first = whole.index(50279) + 1
    assert found.labels == (NO_LOSS,) * first + tuple(whole[first:])
    assert (
        tokenizer.decode([x for x in found.labels if x != NO_LOSS]) == "Oak and elm.\n\n### End"
        and found.labels[-1] == 50277
    )


@needs_pythia
@needs_rows
def test_real_rows_are_one_text_and_the_too_long_ones_are_counted(tmp_path):
    tokenizer, source = dolly.with_keys(pythia()), str(DATA / "dolly" / "dolly-first-6400.jsonl")
    told, sequences, left_out = dolly.rows(
        tmp_path, tokenizer, 64, source=source, limit=300, seed=1
    )
    everything, longer, none = dolly.rows(
        tmp_path, tokenizer, 4096, source=source, limit=300, seed=1
    )
    assert len(longer) == 300 and none == {"blank": 0, "too long": 0}
    kept = [row for row, x in zip(everything, longer) if len(x.input_ids) <= 64]
    assert told == kept and left_out["too long"] == 300 - len(kept) > 0
    for row, x in zip(told, sequences):
        assert (
            list(x.input_ids)
            == tokenizer(dolly.prompt(row["prompt"]) + row["answer"] + "\n\n### End")["input_ids"]
        )
        assert x.input_ids.count(50279) == x.input_ids.count(50277) == 1
    assert [x.index for x in sequences] == list(range(len(told))) and check(
        sequences, 50280, 64
    ) is None


def test_rows_may_have_a_context_and_must_have_text(tmp_path):
    tokenizer = dolly.with_keys(bytes_tokenizer())
    rows = [
        {"instruction": "Who?", "context": "Ann ran.", "response": "Ann"},
        {"instruction": "Who?", "context": "", "response": "Bo"},
        {"instruction": "Who?", "response": " "},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    told, sequences, left_out = dolly.rows(
        tmp_path, tokenizer, 1000, source=str(tmp_path / "rows.jsonl")
    )
    assert [x["kind"] for x in told] == ["row with context", "row"] and left_out == {
        "blank": 1,
        "too long": 0,
    }
    assert told[0]["prompt"] == "Who?\nAnn ran." and len(sequences[0].input_ids) > len(
        sequences[1].input_ids
    )
    with pytest.raises(ValueError, match="none of 3 rows is left.*max_length = 20"):
        dolly.rows(tmp_path, tokenizer, 20, source=str(tmp_path / "rows.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"inputs": "x"}\n')
    with pytest.raises(ValueError, match="no column 'instruction'; its columns are inputs"):
        dolly.rows(tmp_path, tokenizer, 20, source=str(tmp_path / "other.jsonl"))


def lively(tokenizer, seed=1):
    """A model whose next token hangs on the text, and which ends an answer now and then."""
    model = neox(len(tokenizer), seed)
    with torch.no_grad():
        [p.mul_(12) for name, p in model.named_parameters() if p.dim() == 2]
    return model


QUESTIONS = [
    {"instruction": "Name a tree."},
    {"instruction": "Who?", "context": "Ann ran."},
    {"instruction": "Which?", "answer": "This one."},
]


def test_answers_are_the_models_own_with_their_log_probabilities():
    tokenizer = dolly.with_keys(bytes_tokenizer())
    model = lively(tokenizer)
    rows = dolly.answers(model, tokenizer, QUESTIONS, samples=2, max_new_tokens=12)
    assert [row["how"] for row in rows] == ["greedy", "sample 1", "sample 2"] * 2 + ["given"]
    for row in rows:
        query = dolly.query(row, tokenizer)
        assert row["logprob"] == pytest.approx(sum(row["logprobs"])) and len(
            row["logprobs"]
        ) == len(row["answer_ids"])
        with torch.no_grad():
            assert log_probability(
                logits(model, collate([query])), collate([query])
            ).item() == pytest.approx(row["logprob"], abs=1e-4)
        assert tokenizer.decode(query.input_ids).startswith(row["formatted"]) and row[
            "formatted"
        ].endswith("### Response:\n")
    assert rows[-1]["answer"] == "This one." and rows[3]["prompt"] == "Who?\nAnn ran."
    for row in rows[:6]:  # against what generation itself says, token by token
        head = tokenizer(row["formatted"], return_tensors="pt")["input_ids"]
        forced = torch.cat([head, torch.tensor([row["answer_ids"]], dtype=torch.long)], 1)
        for n, (token, said) in enumerate(zip(row["answer_ids"], row["logprobs"])):
            step = model.generate(
                forced[:, : head.shape[1] + n],
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            assert step.logits[0][0].log_softmax(0)[token].item() == pytest.approx(said, abs=1e-4)
            if row["how"] == "greedy":
                assert step.logits[0][0].argmax() == token


def test_a_draw_hangs_on_seed_prompt_and_number_alone():
    tokenizer = dolly.with_keys(bytes_tokenizer())
    model = lively(tokenizer)
    state = torch.get_rng_state()
    drawn = dolly.answers(model, tokenizer, QUESTIONS, samples=2, temperature=1.5, max_new_tokens=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        dolly.answers(
            model, tokenizer, QUESTIONS[1:2], samples=2, temperature=1.5, max_new_tokens=8
        )
        == drawn[3:6]
    )
    assert len({tuple(row["answer_ids"]) for row in drawn[:3]}) == 3
    assert (
        dolly.answers(
            model, tokenizer, QUESTIONS, samples=2, temperature=1.5, max_new_tokens=8, seed=1
        )[1]["answer_ids"]
        != drawn[1]["answer_ids"]
    )


def test_an_answer_ends_at_the_end_key_and_without_the_blank_line_before_it():
    """Taught one row to the letter, the model repeats it and stops."""
    tokenizer = dolly.with_keys(bytes_tokenizer())
    model = neox(len(tokenizer))
    train(model, [dolly.encoded("Tree?", "Oak.", tokenizer)], epochs=60, rate=1e-2)
    (row,) = dolly.answers(model, tokenizer, [{"instruction": "Tree?"}], max_new_tokens=20)
    assert (row["answer"], row["stopped"], tokenizer.decode(row["answer_ids"])) == (
        "Oak.",
        True,
        "Oak.",
    )
    (cut,) = dolly.answers(model, tokenizer, [{"instruction": "Tree?"}], max_new_tokens=2)
    assert (cut["answer"], cut["stopped"]) == ("Oa", False)


def test_questions_that_cannot_be_asked_are_named():
    tokenizer = dolly.with_keys(bytes_tokenizer())
    model = neox(len(tokenizer))
    with pytest.raises(ValueError, match="without an instruction: {'question'"):
        dolly.answers(model, tokenizer, [{"question": "Who?"}])
    with pytest.raises(
        ValueError, match="'Name a tree.' and 300 new tokens are .*; the model reads 256"
    ):
        dolly.answers(model, tokenizer, QUESTIONS[:1], max_new_tokens=300)
