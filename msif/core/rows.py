"""How a text becomes token ids, and how a prompt and its answer become one row: as the tokenizer
and the chat format of the model have them.

Special tokens. What the tokenizer puts before and after every text (a BOS, an EOS) stands before
and after documents, rows, and, as far as it stands before, the prompts that a model continues: the
model was trained so. It stands there once, also where a text brings it along, as a rendered chat
does. A tokenizer that adds none gets none.

Between prompt and answer stands what the chat format has there, if the prompt ends as the format
opens an answer. Otherwise a space, where running text has one: not where the prompt ends in
whitespace or a special token or the answer begins with one, not beside a script that is written
without spaces, not after an opening bracket or quotation mark, a currency, "#", "@", or a sign that
has no space before it either (2+2=, <answer>, https://), and not before closing punctuation.

After the answer stands what the chat format closes a turn with, under the same condition, and the
tokenizer's own EOS; neither twice. `turns` tells how a chat format opens and closes an answer.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from msif.core import checks
from msif.core.turns import Turn, left_of, special_tokens, turn_of

Ids = tuple[int, ...]
# Han, kana, bopomofo, their punctuation and full-width forms; Thai, Lao, Myanmar, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
_PROBES = ("a", "1", "the", "b", ".")
_ANCHORS = ("\n", ":", "a", "1")


@dataclass(frozen=True)
class Format:
    """What a tokenizer and its chat template put around texts.

    first, last: ids before and after every text. turn: how a rendered chat opens and closes an
    answer."""

    first: Ids = ()
    last: Ids = ()
    turn: Turn = Turn()


def format_of(tokenizer: PreTrainedTokenizerBase) -> Format:
    """The `Format` of a tokenizer, by what it does to a few texts."""
    return Format(*_frame(tokenizer), turn_of(tokenizer))


def document_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, form: Format | None = None
) -> list[Ids]:
    """The ids of whole texts, the tokenizer's special tokens around each once."""
    form = form or format_of(tokenizer)
    found = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    return [_once(tuple(ids), text, tokenizer, form) for ids, text in zip(found, texts)]


def split_answer(
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    separator: str | None = None,
    form: Format | None = None,
) -> tuple[Ids, Ids]:
    """(ids of the prompt by itself, as a model continues it; ids of the answer that follows it).

    The first begins with the tokenizer's BOS, if it has one; the second has what stands between the
    two, and nothing that closes the answer (`closing_ids`). separator: in place of what the module
    says stands between them. An answer of whitespace alone has no ids.
    """
    form = form or format_of(tokenizer)
    bare = _ids(prompt, tokenizer)
    twice = form.first and bare[: len(form.first)] == form.first
    head = bare if twice and _begins(prompt, form.first, tokenizer) else form.first + bare
    if not bare or not answer.strip():
        return head if bare else (), ()
    if separator is None:
        separator = _separator(prompt, answer, tokenizer, form)
    whole = _ids(prompt + separator + answer, tokenizer)
    joined = whole[: len(bare)] == bare and len(whole) > len(bare)
    # Without a space, unknown text runs on over the boundary and is one <unk> with the prompt's.
    if joined and not (separator == "" and bare[-1] == tokenizer.unk_token_id):
        return head, whole[len(bare) :]
    return head, _after(separator + answer, tokenizer)


def closing_ids(
    prompt: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    closing: str | None = None,
    form: Format | None = None,
) -> Ids:
    """The ids that close the row of an answer: of the chat format, if the prompt ends as it opens
    an answer, and the tokenizer's EOS; none that the answer already ends in. closing: the text to
    have in their place ("" for none)."""
    form = form or format_of(tokenizer)
    if closing is not None:
        return _after(closing, tokenizer) if closing else ()
    text = "" if left_of(prompt, form.turn) is None else form.turn.closing or ""
    if text.strip() and answer.rstrip().endswith(text.strip()):
        text = ""
    ids = _after(text, tokenizer) if text else ()
    ends = form.last and any(
        x.rstrip().endswith(_name(form.last, tokenizer)) for x in (answer, text)
    )
    return ids if ends else ids + form.last


def closing_of(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids that close an answer in the tokenizer's chat format; none without one."""
    text = turn_of(tokenizer).closing
    return _after(text, tokenizer) if text else ()


def words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The piece of text that each token adds: strings whose concatenation is the decoded text,
    spaces of a word-level tokenizer included.

    A token that ends inside a character (byte-level tokenizers split one over several) adds
    nothing: the one that completes it has it all."""

    def decode(part):
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    found = []
    start, shown = 0, 0  # ids[start:shown]: the context that decides about a space before the next
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:shown])) if shown else "", decode(list(ids[start:end]))
        if now.endswith("\ufffd") and end < len(ids):
            found.append("")
        else:
            found.append(now[len(before) :])
            start, shown = shown, end
    return found


def unknown_words(answer: str, ids: Ids, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of an answer, whose `ids` these are, that the tokenizer does not know."""
    unk = tokenizer.unk_token_id
    if unk is None or unk not in ids or str(tokenizer.unk_token) in answer:
        return []
    words = answer.split()
    return [word for word in words if unk in _ids(word, tokenizer)] or words


def warn_of_unknown(unknown: dict[int, list[str]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn, in one sentence, of rows: {number: the words of its answer that are unknown}."""
    if unknown:
        named = [f"row {n}: {' '.join(few)}" for n, few in islice(unknown.items(), 5)]
        warnings.warn(
            f"{len(unknown)} answer(s) have words that the tokenizer does not know and reads as "
            f"{tokenizer.unk_token} ({'; '.join(named)}): what is scored is {tokenizer.unk_token}, "
            f"not these words",
            stacklevel=3,
        )


def warn_of_nothing_known(
    what: str, texts: dict[int, Ids], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Warn, in one sentence, of texts ({number: ids}) of which the tokenizer knows no word."""
    unk, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    nothing = [n for n, ids in texts.items() if unk in ids and set(ids) <= special]
    if nothing:
        named = ", ".join(map(str, nothing[:5])) + ", …" * (len(nothing) > 5)
        warnings.warn(
            f"{len(nothing)} of {len(texts)} {what}s have no word that the tokenizer knows: all is "
            f"{tokenizer.unk_token} ({what} {named}); is this the model's tokenizer?",
            stacklevel=3,
        )


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per space-separated word: <pad>, <unk>, then the words of `texts` by alphabet."""
    words = sorted(
        {word for text in checks.several("text", texts) for word in text.split()}
        - {"<pad>", "<unk>"}
    )
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def _ids(text, tokenizer) -> Ids:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _after(text, tokenizer) -> Ids:
    """The ids of a text that continues another: without the space that some tokenizers put before
    a text."""
    for anchor in _ANCHORS:
        before, whole = _ids(anchor, tokenizer), _ids(anchor + text, tokenizer)
        known = not before or before[-1] != tokenizer.unk_token_id
        if known and whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    return _ids(text, tokenizer)


def _name(ids, tokenizer):
    """How special tokens are written in a text."""
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def _begins(text, ids, tokenizer):
    """Does a text itself bring these special tokens along, at its start?"""
    return text.startswith(_name(ids, tokenizer))


def _once(ids, text, tokenizer, form):
    first, last = len(form.first), len(form.last)
    if first and ids[: 2 * first] == 2 * form.first and _begins(text, form.first, tokenizer):
        ids = ids[first:]
    if last and ids[-2 * last :] == 2 * form.last and text.endswith(_name(form.last, tokenizer)):
        ids = ids[:-last]
    return ids


def _frame(tokenizer) -> tuple[Ids, Ids]:
    """The ids that the tokenizer puts before and after every text."""
    places: list[tuple[Ids, Ids]] = []
    for probe in _PROBES:
        bare = _ids(probe, tokenizer)
        whole = tuple(tokenizer(probe, verbose=False)["input_ids"])
        extra = range(len(whole) - len(bare) + 1)
        places = [
            (whole[:k], whole[k + len(bare) :]) for k in extra if whole[k : k + len(bare)] == bare
        ]
        if bare and len(places) == 1:
            break
    # Several, where the probes are unknown and <unk> is the BOS: it stands before.
    return places[-1] if places else ((), ())


def _separator(prompt, answer, tokenizer, form):
    if (opened := left_of(prompt, form.turn)) is not None:
        left, separator = opened
        if left or separator is not None:
            # An answer that brings the space along has it once.
            return left.removesuffix(separator or "") if answer[0].isspace() else left
    if not prompt or prompt[-1].isspace() or answer[0].isspace():
        return ""
    special = special_tokens(tokenizer)
    if any(prompt.endswith(x) or answer.startswith(x) for x in special):
        return ""
    if _UNSPACED.match(prompt[-1]) or _UNSPACED.match(answer[0]):
        return ""
    return "" if _opens(prompt) or _closes(answer) else " "


def _opens(prompt):
    """Does a text end in what the next word follows without a space?"""
    last, before = prompt[-1], prompt[:-1]
    if last in '"`':
        return prompt.rpartition("\n")[2].count(last) % 2 == 1
    if last == "'":
        return not before or before[-1].isspace() or before[-1] in "([{:=,"
    kind = unicodedata.category(last)
    if kind in ("Ps", "Pi", "Sc") or last in "#@":
        return True
    rest = prompt.rstrip("".join(x for x in set(prompt) if _joins(x)))
    return len(rest) < len(prompt) and bool(rest) and not rest[-1].isspace()


def _joins(character):
    """Is it a sign such as = or -, which has a space after it if it has one before?"""
    return unicodedata.category(character) in ("Sm", "Pd", "Pc") or character in "/\\"


def _closes(answer):
    """Does a text begin with what follows a word without a space?"""
    if answer[0] in ",.;:!?":
        return not answer[1:] or answer[1].isspace()
    return unicodedata.category(answer[0]) in ("Pe", "Pf")
