"""Conversations: the ids of the tokenizer's own template, a loss on the assistant's turns alone,
however the rows arrive; what cannot be told is refused, naming the row."""

import pytest
import support.laws  # noqa: F401  # before hypothesis is used
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_of_kinds import CHAT, HEADERS, INST, MARKED, byte_level, like_llama

from msif.core.conversations import encode, encode_pairs, opened
from msif.core.data import NO_LOSS, encode_answers

TEXTS = ["system user assistant Where was Ada born ? Paris London [INST] [/INST] ( ) : .", "\nA7a"]
EVERY = {
    "chatml": byte_level(TEXTS, CHAT),
    "marked": byte_level(TEXTS, MARKED),
    "headers": byte_level(TEXTS, HEADERS),
    "inst": like_llama(TEXTS, INST, scheme="first"),
}
each = pytest.mark.parametrize("name", EVERY)
SAID = st.sampled_from(["Paris", "London", "Ada was", "Paris .", "Where ?", "( Ada )"])


def user(text):
    return {"role": "user", "content": text}


def told(text):
    return {"role": "assistant", "content": text}


TWO = [user("Where was Ada born ?"), told("London"), user("Where ?"), told("Paris .")]


def own(tokenizer, conversation, **options):
    """The ids that the tokenizer's own template gives."""
    return tuple(tokenizer.apply_chat_template(conversation, return_dict=True, **options).input_ids)


def labelled(row):
    """[ids of each stretch of labels]."""
    found, inside = [], False
    for label in row.labels:
        if label != NO_LOSS:
            found += [] if inside else [[]]
            found[-1].append(label)
        inside = label != NO_LOSS
    return found


@each
@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), system=st.booleans())
def test_a_row_is_the_template_s_with_labels_on_every_turn_of_the_assistant(name, turns, system):
    """Each stretch of labels is one answer and what closes it; what opens it has none."""
    tokenizer = EVERY[name]
    chat = [{"role": "system", "content": "Ada"}] * (system and name != "inst")
    for asked, answer in turns:
        chat += [user(asked), told(answer)]
    [row] = encode([chat], tokenizer, 999)
    assert row.input_ids == own(tokenizer, chat)
    parts = labelled(row)
    assert all(label in (NO_LOSS, x) for x, label in zip(row.input_ids, row.labels))
    closed = {"chatml": "<|im_end|>\n", "marked": "<|im_end|>", "headers": "<|im_end|>"}
    closing = closed.get(name, "</s>")
    assert [tokenizer.decode(x).strip(" ") for x in parts] == [y + closing for _, y in turns]
    [last] = encode([chat], tokenizer, 999, "last")
    assert last.input_ids == row.input_ids and labelled(last) == parts[-1:]
    [rest] = encode([chat], tokenizer, 999, "rest")  # as in pairs, marks or none
    [pair] = encode_pairs(
        [{"prompt": chat[:-1], "chosen": chat[-1:], "rejected": chat[-1:]}], tokenizer, 999
    )
    assert rest == pair.chosen
    if name != "marked":
        assert rest == last
    assert name != "inst" or row.input_ids.count(tokenizer.bos_token_id) == 1


@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
def test_where_the_template_marks_the_turns_its_marks_are_the_labels(turns):
    chat = [x for asked, answer in turns for x in (user(asked), told(answer))]
    tokenizer = EVERY["marked"]
    known = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    [row] = encode([chat], tokenizer, 999)
    assert [label != NO_LOSS for label in row.labels] == list(map(bool, known["assistant_masks"]))
    [plain] = encode([chat], EVERY["chatml"], 999)
    assert row.input_ids == plain.input_ids


@pytest.mark.parametrize("name", ["chatml", "headers", "inst"])
@given(asked=SAID, answer=SAID)
def test_one_turn_is_the_row_of_its_prompt_and_answer(name, asked, answer):
    tokenizer = EVERY[name]
    prompt = tokenizer.apply_chat_template(
        [user(asked)], tokenize=False, add_generation_prompt=True
    )
    assert encode([[user(asked), told(answer)]], tokenizer, 99) == encode_answers(
        [prompt], [answer], tokenizer, 99
    )


@each
def test_the_turns_of_a_conversation_are_the_last_turns_of_its_beginnings(name):
    tokenizer = EVERY[name]
    [row] = encode([TWO], tokenizer, 999)
    first, second = encode([TWO[:2], TWO], tokenizer, 999, "last")
    assert labelled(row) == labelled(first) + labelled(second)
    head, closing, labels = opened(TWO[:3], tokenizer, "row 0")
    assert head == own(tokenizer, TWO[:3], add_generation_prompt=True)
    start = len(row.input_ids) - len(labelled(row)[-1])
    assert name == "marked" or head == row.input_ids[:start]
    assert closing == row.input_ids[-len(closing) :] and labels == row.labels[-len(closing) :]
    assert tokenizer.decode(closing).strip() in ("<|im_end|>", "</s>")


BAD = [
    ([], "expected a list of messages"),
    ("Where?", "expected a list of messages"),
    ([user("a"), {"role": "assistant"}], "message 1 is .* expected .'role': …, 'content'"),
    ([user("a"), told(None)], "message 1: the content is None; expected text"),
    ([user(["a"]), told("b")], r"message 0: the content is \['a'\]; expected text"),
    ([user("a"), told(" ")], "message 1: the assistant says nothing"),
    ([user("a"), user("a"), told("b")], "has the roles user, user, assistant; expected user and"),
    ([user("a"), told("b") | {"weight": 0}], "message 1 has 'weight': 0; turns that training left"),
    ([user("a"), told("b") | {"train": False}], "message 1 has 'train': False; turns that"),
    ([told("b")], "has the roles assistant; expected user and assistant by turns"),
    ([user("a"), {"role": "tool", "content": "b"}, told("c")], "has the roles user, tool, assist"),
    ([user("a")], "ends with the user's turn; expected the assistant's"),
    (TWO * 90, "tokens, max_length is 999; shorten the conversation"),
]


NO = (False, 0, 0.0, "false", "False", " no ", "0")
LEFT = [(x, no) for x in ("train", "training", "trainable", "learn", "loss") for no in NO]
LEFT += [(x, y) for x in ("weight", "loss_weight") for y in (0, 0.5, 2, False, "0", "1")]


@pytest.mark.parametrize("key, value", LEFT)
def test_a_turn_that_training_left_out_or_weighed_is_refused(key, value):
    """Full loss on it would be another training than the model had."""
    with pytest.raises(ValueError, match=f"row 1, message 1 has {key!r}: {value!r}; turns that"):
        encode([TWO, [user("a"), told("b") | {key: value}]], EVERY["chatml"], 999)


def test_keys_that_leave_no_turn_out_change_nothing():
    [plain] = encode([TWO], EVERY["chatml"], 999)
    for key, value in [("loss", True), ("train", "yes"), ("weight", 1.0), ("learn", None)]:
        assert encode([[x | {key: value} for x in TWO]], EVERY["chatml"], 999) == [plain]
    asked = [x | {"train": x["role"] == "assistant"} for x in TWO]  # of the user's, there is none
    assert encode([asked], EVERY["chatml"], 999) == [plain]


@pytest.mark.parametrize("bad, message", BAD)
def test_what_is_no_conversation_is_refused_by_its_row(bad, message):
    with pytest.raises(ValueError, match=f"row 1.*{message}"):
        encode([TWO, bad], EVERY["chatml"], 999)


FORGETS = (  # as templates that leave out what was thought before the last answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}( ){% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "row 0 is a conversation, and the tokenizer has no chat template"),
        ("{{ raise_exception('no such roles') }}", "row 0 cannot be rendered .*no such roles"),
        ("{{ messages[9].content }}", "row 0 cannot be rendered by the chat template"),
        (FORGETS, r"row 0: its first 2 messages.*end in '\( \)London.*where the whole has 'London"),
        (CHAT.replace("assistant\n{% endif", "assistant\n( ){% endif"), "row 0: its first 1 mess"),
        (MARKED.replace("m.role == 'assistant'", "loop.last"), "marks 1 stretches .* for 2 turns"),
        ("{% for m in messages %}{% if m.role == 'user' %}a{% endif %}{% endfor %}", "no token"),
    ],
)
def test_a_template_that_does_not_tell_the_turns_apart_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        encode([TWO], byte_level(TEXTS, template), 999)


def test_tokens_that_run_across_a_turn_s_begin_are_refused():
    run_on = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = byte_level(["London London"], run_on)
    with pytest.raises(ValueError, match="row 0: its first 1 messages.*expected the same tokens"):
        encode([[user("Lon"), told("don")]], tokenizer, 99)


def test_words_that_nobody_knows_are_named():
    tokenizer = EVERY["inst"]
    with pytest.warns(UserWarning, match="row 0: Zürich"):
        encode([[user("Where ?"), told("Paris Zürich")]], tokenizer, 99)


# ------------------------------------------------------------------------------------ preferences


@each
@given(asked=SAID, chosen=SAID, rejected=SAID)
def test_a_pair_of_messages_is_the_pair_of_its_answers(name, asked, chosen, rejected):
    """With a prompt or whole; the loss begins after the prompt, marks or none, as trl has it."""
    tokenizer = EVERY[name]
    prompt = [*TWO, user(asked)]
    parted = {"prompt": prompt, "chosen": [told(chosen)], "rejected": [told(rejected)]}
    [pair] = encode_pairs([parted], tokenizer, 999)
    start = len(own(tokenizer, prompt, add_generation_prompt=True))
    for row, answer in ((pair.chosen, chosen), (pair.rejected, rejected)):
        assert row.input_ids == own(tokenizer, [*prompt, told(answer)])
        assert row.labels == (NO_LOSS,) * start + row.input_ids[start:]
    whole = {side: [*prompt, *parted[side]] for side in ("chosen", "rejected")}
    if chosen != rejected:
        assert encode_pairs([whole], tokenizer, 999) == [pair]
    else:
        with pytest.raises(ValueError, match="pair 0 has no prompt of messages, and chosen and "):
            encode_pairs([whole], tokenizer, 999)


@each
@given(system=st.booleans(), later=st.booleans())
def test_a_prompt_of_text_is_the_first_turn_of_whole_conversations(name, system, later):
    """As UltraFeedback has them; what follows the prompt, and is shared, belongs to it."""
    tokenizer = EVERY[name]
    before = [{"role": "system", "content": "Ada"}] * (system and name != "inst") + TWO[:1]
    before += TWO[1:3] * later
    sides = {x: [*before, told(y)] for x, y in (("chosen", "Paris"), ("rejected", "London"))}
    rows = [
        {**sides, "prompt": TWO[0]["content"]},
        sides,
        {"prompt": before, **{x: y[-1:] for x, y in sides.items()}},
    ]
    pairs = [encode_pairs([row], tokenizer, 999) for row in rows]
    assert pairs[0] == pairs[1] == pairs[2]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"chosen": TWO, "rejected": "no"}, "rejected is 'no'; expected a list of messages"),
        ({"chosen": TWO, "rejected": TWO[2:]}, "no message in common"),
        (
            {"prompt": "Where is it?", "chosen": TWO, "rejected": TWO[:3]},
            r"pair 1, chosen: the user's first turn is not the prompt: from character 6 on it has "
            r"'was Ada born \?', the prompt 'is it\?'; expected equal texts",
        ),
        (
            {"prompt": TWO[0]["content"], "chosen": TWO, "rejected": [user("Where"), told("a")]},
            "pair 1, rejected: .* from character 5 on it has '', the prompt ' was Ada born ?",
        ),
        ({"prompt": "a", "chosen": [told("a")], "rejected": [told("b")]}, "has the roles assist"),
        ({"prompt": 7, "chosen": TWO, "rejected": TWO}, "pair 1, prompt is 7; expected a list"),
        ({"prompt": TWO[0]["content"], "chosen": TWO, "rejected": TWO}, "one of them whole in com"),
        ({"prompt": TWO, "chosen": TWO, "rejected": TWO}, "prompt ends with the assistant's turn"),
        (
            {"prompt": TWO[:1], "chosen": [told("a")], "rejected": [user("b")]},
            "pair 1, rejected has the roles user, user",
        ),
    ],
)
def test_what_is_no_pair_of_conversations_is_refused(row, message):
    good = {"chosen": TWO, "rejected": [*TWO[:3], told("London")]}
    with pytest.raises(ValueError, match=message):
        encode_pairs([good, row], EVERY["chatml"], 999)
