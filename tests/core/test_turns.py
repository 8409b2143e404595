"""An answer is closed as its template closes it, however the template opens it; where that cannot
be told, one warning says so."""

import warnings

import pytest
from support.tokenizers_of_kinds import CHAT, INST, byte_level

from msif.core.conversations import encode, encode_pairs
from msif.core.data import NO_LOSS, encode_answers

TEXTS = [
    "user assistant Where was Ada born ? Paris London [INST] [/INST] ( ) : .",
    "\nA7a Q7q think",
]
SWITCH = CHAT.replace(  # as Qwen3's
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
)
THOUGHT = (  # as DeepSeek-R1's: it opens an answer with a thought, and tells what was said without
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
ONE_END = (  # the EOS stands once, where the render ends
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
EVERY = {
    "plain": (CHAT, {}, "<|im_end|>\n"),
    "inst": (INST, {}, "<|im_end|>"),
    "switch": (SWITCH, {}, "<|im_end|>\n"),
    "no thoughts": (SWITCH, {"enable_thinking": False}, "<|im_end|>\n"),
    "thought": (THOUGHT, {}, "<|im_end|>"),
    "one end": (ONE_END, {}, "\n<|im_end|>"),
}
ASKED = [{"role": "user", "content": "Where ?"}]
MUTE = CHAT.replace("{% for", "{% if messages[-1].role != 'user' %}{{ no() }}{% endif %}{% for", 1)


def asked(tokenizer, **options):
    return tokenizer.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, **options
    )


def tokenizer_of(template):
    found = byte_level(TEXTS, template)
    found.bos_token = "<|im_start|>"
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_rendered_prompt_has_the_closing_of_its_template(name):
    template, options, closing = EVERY[name]
    tokenizer = tokenizer_of(template)
    prompt = asked(tokenizer, **options)
    whole = tokenizer.apply_chat_template(
        [*ASKED, {"role": "assistant", "content": "Paris"}], tokenize=False
    )
    assert whole.endswith("Paris" + closing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, answer in ((prompt, "Paris"), (prompt.rstrip(), "Paris" + closing)):
            [row] = encode_answers([given], [answer], tokenizer, 999)
            said = tokenizer.decode([x for x in row.labels if x != NO_LOSS])
            assert said.strip() == ("Paris" + closing).strip()
            assert tokenizer.decode(row.input_ids) == prompt + " " * (name == "inst") + (
                "Paris" + closing
            )


@pytest.mark.parametrize(
    "template, end, known",
    [
        (CHAT, "<think>\n", "opens an answer by '<|im_end|>\\n<|im_start|>assistant\\n'"),
        (MUTE, "", "opens an answer by '<|im_end|>\\n<|im_start|>assistant\\n'"),
        ("{{ no() }}<|im_end|>", "<|im_end|>", "opens an answer by nothing that can be told"),
    ],
)
def test_one_warning_where_the_closing_cannot_be_told(template, end, known):
    tokenizer = tokenizer_of(template)
    prompt = asked(tokenizer_of(CHAT)) + end
    with pytest.warns(UserWarning) as found:
        [row, _, closed] = encode_answers(
            [prompt] * 3, ["Paris", "London", "Ada<|im_end|>"], tokenizer, 999
        )
    [told] = [str(x.message) for x in found]
    assert told.startswith("2 of 3 prompts are rendered chats, and what closes their answers")
    assert f"row 0 ends in {prompt[-40:]!r}" in told and known in told and "closing=…" in told
    assert tokenizer.decode(row.input_ids) == prompt + "Paris"
    assert tokenizer.decode(closed.input_ids) == prompt + "Ada<|im_end|>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_answers([prompt], ["Paris"], tokenizer, 999, closing="")
        encode_answers(["Where ?"], ["Paris"], tokenizer, 999)  # no chat


DATED = "{% if messages[0].role != 'system' %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHAT
LLAMA_3 = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
    "{{ date_string }}" + CHAT
)
SYSTEM = {"role": "system", "content": "Ada"}
TOLD = [*ASKED, {"role": "assistant", "content": "Paris"}]
PAIR = {"prompt": ASKED, "chosen": TOLD[1:], "rejected": TOLD[1:]}


@pytest.mark.parametrize(
    "template, dated",
    [
        (DATED, True),
        (LLAMA_3, True),
        ("{{ strftime_now('%Y') | int + 1 }}" + CHAT, True),
        ("{% set date_string = '1 May' %}" + LLAMA_3, False),  # what the warning says to do
        (DATED.replace("strftime_now('%d %b %Y')", "'1 May'"), False),
        (CHAT, False),
    ],
)
def test_one_warning_where_a_template_writes_the_date_of_today(template, dated):
    tokenizer = tokenizer_of(template)
    for make in (
        lambda: encode([[SYSTEM, *TOLD], TOLD, TOLD], tokenizer, 999),
        lambda: encode_pairs([PAIR, PAIR], tokenizer, 999),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            make()
        told = [str(x.message) for x in found]
        assert len(told) == dated
        assert all("writes today's date" in x and "as {% set date_string = '" in x for x in told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if template == DATED or not dated:
            encode([[SYSTEM, *TOLD]], tokenizer, 999)  # where the system speaks, DATED has no date
