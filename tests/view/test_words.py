"""What each token adds to a text."""

from pathlib import Path

import pytest

from msif.core.data import word_tokenizer
from msif.core.models import load_tokenizer
from msif.view.words import visible, words


def test_words_of_a_word_level_tokenizer_join_to_its_text():
    tokenizer = word_tokenizer(["ada was born in london ."])
    ids = tokenizer("ada was born in london .")["input_ids"]
    assert words(tokenizer, ids) == ["ada", " was", " born", " in", " london", " ."]
    assert words(tokenizer, []) == []


@pytest.mark.parametrize(
    "text",
    [
        "plain text, twice  spaced\nand a line",
        "naïve café 東京 🙂🙃 end",
        " leading",
        "\ufffd kept \ufffd",
    ],
)
def test_words_of_byte_level_tokens_join_to_the_text_though_characters_are_split(text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # one token a byte: every character is split
    bytes_alone = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone)
    found = words(tokenizer, tokenizer(text)["input_ids"])
    assert len(found) == len(text.encode()) and "".join(found) == text


@pytest.mark.parametrize("folder", ["pythia-tokenizer", "stories260K"])
def test_words_of_real_tokenizers_join_to_the_decoded_text(folder):
    if not (path := Path("data", folder)).exists():
        pytest.skip(f"{path} is not there; docs/profiles.md says what belongs into data/")
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer("Once upon a time, naïve Zoë met a 🙂.\nThe end", add_special_tokens=False)[
        "input_ids"
    ]
    found = words(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == tokenizer.decode(
        ids, clean_up_tokenization_spaces=False
    )


def test_what_is_seen_stays_and_what_is_not_is_named():
    kept = "tab\tline\n café مرحبا می\u200cخواهم 👩\u200d👩 \u00a0"
    assert visible(kept) == kept
    assert visible("a\u202eb\x00\ud800\r") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩⟨U+000D⟩"
