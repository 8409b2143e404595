"""A row is what the model was trained on: its tokenizer's special tokens once, and between prompt
and answer what running text or the chat format has there."""

import pytest
import support.laws  # noqa: F401  # before hypothesis is used
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_of_kinds import CHAT, INST, by_word, byte_level, like_llama

from msif.core.data import NO_LOSS, encode_answers, encode_documents, word_tokenizer
from msif.core.rows import Format, closing_ids, format_of, split_answer, words

TEXTS = [
    "user assistant Where was Ada born ? Paris London 首都 巴黎 [INST] [/INST] ( ) : .",
    "\nParis\nLondon 东京 \t“ ” A7a Q7q",
]
BYTES, QWEN = byte_level(TEXTS), byte_level(TEXTS, CHAT)
LLAMA, MISTRAL = like_llama(TEXTS), like_llama(TEXTS, INST, scheme="first")
CLOSED = like_llama(TEXTS, eos=True)
WORDS = by_word(["a", "b", "c"])
EVERY = {"bytes": BYTES, "qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "closed": CLOSED}
each = pytest.mark.parametrize("name", EVERY)


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def written(tokenizer, parts):
    """The text of ids, special tokens left out."""
    return tokenizer.decode(list(parts), skip_special_tokens=True)


def conversation(question, answer=None):
    told = [{"role": "assistant", "content": answer}] if answer else []
    return [{"role": "user", "content": question}, *told]


# ------------------------------------------------------------------- between prompt and answer


@pytest.mark.parametrize(
    "prompt, answer, text",
    [
        ("A:", "Paris", "A: Paris"),
        ("A: ", "Paris", "A: Paris"),
        ("A:\n", "Paris", "A:\nParis"),
        ("A:\n\n", "Paris", "A:\n\nParis"),
        ("A:\t", "Paris", "A:\tParis"),
        ("A:", "\nParis", "A:\nParis"),
        ("A:", " Paris", "A: Paris"),
        ("Where (", "Paris", "Where (Paris"),
        ("Where “", "Paris", "Where “Paris"),
        ('Where "', "Paris", 'Where "Paris'),
        ('Where "Ada"', "Paris", 'Where "Ada" Paris'),
        ('{"answer":"', "Paris", '{"answer":"Paris'),
        ("{'answer': '", "Paris", "{'answer': 'Paris"),
        ("The dogs'", "Paris", "The dogs' Paris"),
        ("2+2=", "4", "2+2=4"),
        ("2 + 2 =", "4", "2 + 2 = 4"),
        ("Where ->", "Paris", "Where -> Paris"),
        ("<answer>", "Paris", "<answer>Paris"),
        ("\n-", "Paris", "\n- Paris"),
        ("https://", "Paris", "https://Paris"),
        ("It costs $", "5", "It costs $5"),
        ("Where **is**", "Paris", "Where **is** Paris"),
        ("Where was Ada", ", Paris", "Where was Ada, Paris"),
        ("Where was Ada", ".", "Where was Ada."),
        ("Where was Ada", ".5", "Where was Ada .5"),
        ("Where (Ada", ") was", "Where (Ada) was"),
        ("首都:", "巴黎", "首都:巴黎"),
        ("首都：", "Paris", "首都：Paris"),
        ("首都", "巴黎", "首都巴黎"),
        ("Where was Ada born?", "Paris", "Where was Ada born? Paris"),
        ("Where [INST] [/INST]", "Paris", "Where [INST] [/INST] Paris"),
    ],
)
@pytest.mark.parametrize("name", ["bytes", "llama"])
def test_a_space_stands_where_running_text_has_one(name, prompt, answer, text):
    tokenizer = EVERY[name]
    if name == "llama" and not set(text) <= set("".join(TEXTS)):
        return
    head, tail = split_answer(prompt, answer, tokenizer)
    assert written(tokenizer, head + tail) == text
    assert head == tuple(tokenizer(prompt)["input_ids"])
    assert written(tokenizer, head) == prompt


@pytest.mark.parametrize("end", ["<|im_start|>", "<|im_end|>"])
def test_nothing_stands_after_a_special_token(end):
    head, tail = split_answer("Where" + end, "Paris", QWEN)
    assert head + tail == ids(QWEN, f"Where{end}Paris")
    assert split_answer("Where", f"{end}Paris", QWEN) == (
        ids(QWEN, "Where"),
        ids(QWEN, end + "Paris"),
    )


def test_what_stands_between_can_be_given():
    for separator in ("", " ", "\n", " -> "):
        head, tail = split_answer("Where", "Paris", BYTES, separator=separator)
        assert BYTES.decode(head + tail) == f"Where{separator}Paris"
    (row,) = encode_answers(["Where"], ["Paris"], BYTES, 64, separator="\n", closing="\n\n")
    assert BYTES.decode(row.input_ids) == "Where\nParis\n\n"


PIECES = st.sampled_from(
    [
        "Where",
        "Paris",
        "was",
        "首都",
        "巴黎",
        " ",
        "  ",
        "\n",
        "\t",
        "(",
        ")",
        '"',
        "“",
        ":",
        ".",
        "é",
        "7",
    ]
)
ANY = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(str.strip)


@given(ANY, ANY)
def test_a_row_holds_prompt_and_answer_to_the_letter(prompt, answer):
    """Whatever they end and begin with: the prompt as it is alone, then at most one space, then the
    answer, which alone has labels."""
    (row,) = encode_answers([prompt], [answer], BYTES, 999)
    head = ids(BYTES, prompt)
    assert row.input_ids[: len(head)] == head
    assert row.labels == (NO_LOSS,) * len(head) + row.input_ids[len(head) :]
    between = BYTES.decode(row.input_ids).removeprefix(prompt).removesuffix(answer)
    assert between in ("", " ")
    beside = prompt[-1] + answer[0]
    assert not (between and any(x.isspace() for x in beside))
    if all(x.isascii() and x.isalnum() for x in beside):
        assert between == " "


@given(ANY, ANY)
def test_words_alone_are_separated_whatever_stands_between(prompt, answer):
    """A word-level tokenizer has the words of the two, as ever."""
    tokenizer = word_tokenizer([prompt, answer])
    assert split_answer(prompt, answer, tokenizer) == (
        ids(tokenizer, prompt),
        ids(tokenizer, answer),
    )


# ------------------------------------------------------------------------------- special tokens


@each
@given(prompt=ANY, answer=ANY)
def test_special_tokens_stand_once_and_alike_in_documents_rows_and_prompts(name, prompt, answer):
    tokenizer = EVERY[name]
    form = format_of(tokenizer)
    assert (
        tuple(tokenizer("Paris")["input_ids"]) == form.first + ids(tokenizer, "Paris") + form.last
    )
    head, tail = split_answer(prompt, answer, tokenizer)
    assert head == form.first + ids(tokenizer, prompt)
    assert not set(form.first) & set(tail)
    (document,) = encode_documents([prompt + "\nx"], tokenizer, 999)
    assert document.input_ids[: len(form.first)] == form.first
    assert document.input_ids[len(document.input_ids) - len(form.last) :] == form.last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **options: None)  # of unknown characters
        try:
            (row,) = encode_answers([prompt], [answer], tokenizer, 999)
        except ValueError as error:
            assert "knows nothing" in str(error)
        else:
            assert row.input_ids == head + tail + form.last


@each
def test_a_text_that_brings_its_special_tokens_along_has_them_once(name):
    tokenizer = EVERY[name]
    form = format_of(tokenizer)
    first = "".join(tokenizer.convert_ids_to_tokens(list(form.first)))
    last = "".join(tokenizer.convert_ids_to_tokens(list(form.last)))
    text = f"{first}Where was Ada{last}"
    (document,) = encode_documents([text], tokenizer, 64)
    assert document.input_ids == ids(tokenizer, text)
    (row,) = encode_answers([f"{first}Where was"], [f"Ada{last}"], tokenizer, 64)
    for x in (1, 2):
        assert row.input_ids.count(x) == (x in form.first + form.last) or name in ("bytes", "qwen")
    assert (
        split_answer(f"{first}Where", "", tokenizer)[0]
        == form.first + ids(tokenizer, first + "Where")[len(form.first) :]
    )


def test_a_word_that_is_unknown_is_no_bos_though_it_has_its_id():
    assert encode_documents(["a b c"], WORDS, 9)[0].input_ids == (0, 1, 2, 3)
    assert encode_answers(["a b"], ["c"], WORDS, 9)[0].input_ids == (0, 1, 2, 3)
    assert encode_documents(["<bos> a b"], WORDS, 9)[0].input_ids == (0, 1, 2)
    assert encode_documents(["zebra a b"], WORDS, 9)[0].input_ids == (0, 0, 1, 2)
    assert split_answer("zebra a", "b", WORDS) == ((0, 0, 1), (2,))


# ---------------------------------------------------------------------------------- chat formats


@pytest.mark.parametrize("name", ["qwen", "mistral"])
@given(question=ANY, answer=st.sampled_from(["Paris", "London", "Ada was", "Paris .", "Where ?"]))
def test_the_row_of_a_rendered_chat_is_the_chat_that_was_trained_on(name, question, answer):
    """To the id: separator, closing and special tokens are the template's."""
    tokenizer = EVERY[name]
    prompt = tokenizer.apply_chat_template(
        conversation(question), tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(conversation(question, answer), tokenize=False)
    (row,) = encode_answers([prompt], [answer], tokenizer, 999)
    assert row.input_ids == ids(tokenizer, whole)
    (document,) = encode_documents([whole], tokenizer, 999)
    assert document.input_ids == row.input_ids
    head = split_answer(prompt, "", tokenizer)[0]
    assert head == ids(tokenizer, prompt) == row.input_ids[: len(head)]
    said = tuple(x for x in row.labels if x != NO_LOSS)
    assert said == row.input_ids[len(head) :] and answer in tokenizer.decode(said)


def test_a_rendered_prompt_that_was_stripped_is_the_chat_all_the_same():
    whole = QWEN.apply_chat_template(conversation("Where", "Paris"), tokenize=False)
    opened = QWEN.apply_chat_template(
        conversation("Where"), tokenize=False, add_generation_prompt=True
    )
    for prompt in (opened, opened.rstrip()):
        (row,) = encode_answers([prompt], ["Paris"], QWEN, 99)
        assert row.input_ids == ids(QWEN, whole)
    whole = MISTRAL.apply_chat_template(conversation("Where", "Paris"), tokenize=False)
    opened = MISTRAL.apply_chat_template(
        conversation("Where"), tokenize=False, add_generation_prompt=True
    )
    for prompt, answer in ((opened, "Paris"), (opened + " ", "Paris"), (opened, " Paris")):
        (row,) = encode_answers([prompt], [answer], MISTRAL, 99)
        assert MISTRAL.decode(row.input_ids) == MISTRAL.decode(ids(MISTRAL, whole))
    opened = QWEN.apply_chat_template(
        conversation("Where"), tokenize=False, add_generation_prompt=True
    )
    (row,) = encode_answers([opened + "\n"], ["Paris"], QWEN, 99)  # not as the format opens it
    assert QWEN.decode(row.input_ids) == opened + "\nParis"


def test_a_chat_closes_what_it_opened_and_nothing_else():
    opened = QWEN.apply_chat_template(
        conversation("Where"), tokenize=False, add_generation_prompt=True
    )
    end = ids(QWEN, "<|im_end|>\n")
    assert closing_ids(opened, "Paris", QWEN) == end
    assert closing_ids(opened, "Paris<|im_end|>\n", QWEN) == ()
    assert closing_ids(opened, "Paris", QWEN, closing="") == ()
    assert closing_ids("Where", "Paris", QWEN) == ()
    assert closing_ids("Where", "Paris", CLOSED) == (2,) == format_of(CLOSED).last
    assert closing_ids("Where", "Paris</s>", CLOSED) == ()


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[9].content }}", "x"]
)
def test_a_template_that_says_nothing_of_answers_changes_nothing(template):
    tokenizer = byte_level(TEXTS, template)
    assert format_of(tokenizer) == Format()
    assert BYTES.decode(split_answer("Where", "Paris", BYTES)[1]) == " Paris"


@each
def test_words_of_ids_join_to_their_text(name):
    tokenizer = EVERY[name]
    found = tokenizer("Where was 首都 Paris ?")["input_ids"]
    assert "".join(words(tokenizer, found)) == tokenizer.decode(found)
