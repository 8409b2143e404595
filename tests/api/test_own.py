"""The model's own answer is one turn: it ends where the turn does, whatever the tokenizer's EOS is
called; and what the model says instead ends where an answer that is traced does."""

import warnings
from itertools import takewhile

import pytest
from support.tokenizers_of_kinds import CHAT, INST, MARKED, byte_level, like_llama
from transformers import LlamaConfig, LlamaForCausalLM

from msif.api.models import Model
from msif.api.own import ends, instead
from msif.core.data import NO_LOSS
from msif.core.layers import tracked

TEXTS = ["user assistant Where was Ada born? Paris London [INST] [/INST]", "\nA7a Q7q ( ) : ."]
SPACED = INST.replace("{{ m.content }}{{ eos_token }}", "{{ m.content }} {{ eos_token }}")
ASKED = [{"role": "user", "content": "Where ?"}]
TURN = [*ASKED, {"role": "assistant", "content": "Paris"}]


def model_of(template, eos):
    made = like_llama if eos == "</s>" else byte_level
    tokenizer = made(TEXTS, template)
    tokenizer.add_special_tokens({"eos_token": eos, "additional_special_tokens": ["<call>"]})
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 12}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return Model(tracked(LlamaForCausalLM(config).eval()), tokenizer, "small")


def decoded(model, row):
    return model.tokenizer.decode([x for x in row.labels if x != NO_LOSS])


@pytest.fixture
def says(monkeypatch):
    """Let the model say ids to whatever it is asked; the prompts go by what ends each."""

    def say(*ids):
        def greedy(model, prompts, new_tokens, stop=()):
            return [list(takewhile(lambda x: x not in stop, ids[:new_tokens])) for _ in prompts]

        monkeypatch.setattr("msif.api.own.greedy", greedy)
        monkeypatch.setattr("msif.core.generation.greedy", greedy)

    return say


@pytest.mark.parametrize(
    "template, eos",
    [
        (CHAT, "<|im_end|>"),
        (CHAT, "<|endoftext|>"),
        (MARKED, "<|im_end|>"),
        (MARKED, "<|endoftext|>"),
        (SPACED, "</s>"),
    ],
)
def test_the_own_answer_of_a_chat_is_the_turn_with_any_eos(says, template, eos):
    """However far the model would go on: the row is that of the answer when it is given."""
    model = model_of(template, eos)
    [turn] = model.questions([TURN])
    start = next(n for n, x in enumerate(turn.labels) if x != NO_LOSS)
    says(*turn.input_ids[start:], *model.tokenizer("Ada")["input_ids"], *turn.input_ids)
    prompt = model.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert model.questions([ASKED], new_tokens=24) == [turn]
    [own] = model.questions([prompt], new_tokens=24)
    assert own.input_ids == turn.input_ids
    [cut] = model.questions([prompt], new_tokens=1)
    assert cut.input_ids == turn.input_ids[: len(cut.input_ids)]


def test_each_question_ends_by_what_closes_it(says):
    """Given by `closing` too; special tokens that end nothing stand in the answer."""
    model = model_of(None, "<|endoftext|>")
    ids = model.tokenizer("Paris<call>London<|endoftext|>Ada")["input_ids"]
    says(*ids)
    [own] = model.questions(["Where"], new_tokens=24)
    assert decoded(model, own) == "Paris<call>London"
    [own] = model.questions(["Where"], new_tokens=24, closing="<call>")
    assert decoded(model, own) == "Paris<call>"


def test_what_the_model_says_instead_ends_as_the_answer_does(says):
    model = model_of(CHAT, "<|endoftext|>")
    end, call = (model.tokenizer.convert_tokens_to_ids(x) for x in ("<|im_end|>", "<call>"))
    eos = model.tokenizer.eos_token_id
    assert ends(model.tracked.model, model.tokenizer) == {end, eos}
    paris, long = (model.tokenizer(x)["input_ids"] for x in ("Paris", "Where was Ada born?"))
    prompt = model.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    says(*paris, end, *long, *long)
    for own, closing in (([*paris, call], "<call>"), ([*paris, end], None), ([*paris, end], "")):
        says(*own, *long, *long)
        [asked] = model.answers([prompt], ["Where was Ada born?"], closing=closing)
        assert instead(model.tracked.model, model.tokenizer, [asked]) == [paris]
    says(*paris, call, *paris)  # <call> ends no answer: here it is a word of it
    [traced] = model.questions([prompt], new_tokens=2 * len(paris) + 1)
    [said] = instead(model.tracked.model, model.tokenizer, [traced])
    assert said == [*paris, call, *paris] == list(traced.input_ids[-len(said) :])


def test_a_chat_that_nothing_closes_is_told_of_its_own_answer_too(says):
    model = model_of(CHAT, "<|im_end|>")
    says(*model.tokenizer("Paris<|im_end|>")["input_ids"])
    prompt = model.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    with pytest.warns(UserWarning, match="1 of 1 prompts are rendered chats"):
        model.questions([prompt + "( "], new_tokens=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.questions([prompt], new_tokens=9)


def test_an_open_conversation_with_the_date_of_today_is_called_out(says):
    dated = model_of("{{ strftime_now('%Y') }}" + CHAT, "<|im_end|>")
    says(*dated.tokenizer("Paris<|im_end|>")["input_ids"])
    with pytest.warns(UserWarning, match="writes today's date") as found:
        dated.questions([ASKED, ASKED], new_tokens=9)
    assert len(found) == 1
