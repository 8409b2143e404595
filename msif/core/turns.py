"""How a chat template opens and closes the assistant's turn, told by what it renders.

An answer's opening is what a render with the generation prompt has after the user's words; there
are several where a template has a switch for thinking. Its closing is what stands after the answer
in a render of question and answer alone, whether or not that begins with the former: a template may
open an answer with a thought (<think>) that it leaves out of what was said, or end a render with
what an open one lacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

_ASKED, _TOLD = "Q7q", "A7a"
_USER = {"role": "user", "content": _ASKED}
_ASSISTANT = {"role": "assistant", "content": _TOLD}
# What templates call their switch for thinking (Qwen3, SmolLM3; DeepSeek V3.1, Granite).
_SWITCHES = [{}, *({x: y} for x in ("enable_thinking", "thinking") for y in (False, True))]

_NO_DATE = "{% macro strftime_now(form) %}D7d{% endmacro %}"


@dataclass(frozen=True)
class Turn:
    """openings: (how a rendered chat ends where an answer is due; what stands then before the
    answer, None if that cannot be told), longest first, none without a chat format. closing: what
    stands after the answer, None if that cannot be told. marks: the special tokens that the
    template writes, by which a rendered chat is known."""

    openings: tuple[tuple[str, str | None], ...] = ()
    closing: str | None = None
    marks: frozenset[str] = frozenset()


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """The `Turn` of a tokenizer's chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return Turn()
    whole = _rendered(tokenizer, [_USER, _ASSISTANT])
    due = [_rendered(tokenizer, [_USER], add_generation_prompt=True, **x) for x in _SWITCHES]
    after = _after(whole)
    openings = {x: _separator(x, after) for x in map(_after, due) if x.strip()}
    _, told, closing = after.rpartition(_TOLD)
    written = "".join([whole, *due, str(tokenizer.get_chat_template())])
    special = special_tokens(tokenizer) - {tokenizer.bos_token, tokenizer.unk_token}
    marks = frozenset(x for x in special if x in written)
    longest_first = sorted(openings.items(), key=lambda x: -len(x[0].rstrip()))
    return Turn(tuple(longest_first), closing if told else None, marks)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The special tokens, as they are written in a text."""
    added = {str(x) for x in tokenizer.added_tokens_decoder.values() if x.special}
    return (set(tokenizer.all_special_tokens) | added) - {""}


def left_of(prompt: str, turn: Turn) -> tuple[str, str | None] | None:
    """(what stands between a prompt that opens an answer as the chat format does, its whitespace
    stripped or all there, and the answer; the separator of that opening); None for others."""
    stripped = prompt.rstrip()
    given = prompt[len(stripped) :]
    for opening, separator in turn.openings:
        bare = opening.rstrip()
        due = opening[len(bare) :] + (separator or "")
        if stripped.endswith(bare) and due.startswith(given):
            return due[len(given) :], separator
    return None


def warn_of_unclosed(
    given: Mapping[int, tuple[str, str]], tokenizer: PreTrainedTokenizerBase, turn: Turn
) -> None:
    """Warn, in one sentence, of chats ({number: (prompt, answer)}) whose answers are closed by
    nothing, as the template does not tell by what."""
    ends = tuple(special_tokens(tokenizer))
    unclosed = {n: x for n, (x, y) in given.items() if not y.rstrip().endswith(ends)}
    if open_ones := [n for n, x in unclosed.items() if _is_unclosed(x, turn)]:
        end = given[open_ones[0]][0][-40:]
        known = " or ".join(repr(x) for x, _ in turn.openings[::-1]) or "nothing that can be told"
        warnings.warn(
            f"{len(open_ones)} of {len(given)} prompts are rendered chats, and what closes their "
            f"answers cannot be told: row {open_ones[0]} ends in {end!r}, where the chat template "
            f"opens an answer by {known}. Nothing closes these answers: give closing=…, what "
            f"training had after one ('' if nothing), or prompts that end as the template has it",
            stacklevel=3,
        )


def is_dated(messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does the chat template write the date of today into a conversation (`strftime_now`, as Llama
    3.1's)? One that has a date of its own does not."""
    template = str(tokenizer.get_chat_template())
    if "strftime_now" not in template:
        return False
    undated = _rendered(tokenizer, messages, chat_template=_NO_DATE + template)
    return undated != _rendered(tokenizer, messages)


def warn_of_date(dated: bool) -> None:
    """Warn, in one sentence, of rows with the date of today, which would be others tomorrow."""
    if dated:
        warnings.warn(
            "the chat template writes today's date into the rows (strftime_now): they are what was "
            "trained on only if that was today, and rows, factors and scores of another day are "
            "others. Write the date that was trained with into tokenizer.chat_template (the "
            "folder's chat_template.jinja): in place of strftime_now(…), or, if it asks for "
            "date_string, at its beginning as {% set date_string = '26 Jul 2024' %}",
            stacklevel=3,
        )


def _is_unclosed(prompt, turn):
    """Is it a rendered chat whose answer the template closes nobody knows how?"""
    if left_of(prompt, turn) is not None:
        return turn.closing is None
    return any(x in prompt for x in turn.marks)


def _rendered(tokenizer, messages, **options):
    """The text, "" if there is none: a template is a program of its own, for the messages that it
    expects."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:
        return ""


def _after(text):
    """What stands after the user's words."""
    _, asked, after = text.rpartition(_ASKED)
    return after if asked else ""


def _separator(opening, after):
    """What stands between an opening and the answer. Words there, such as an empty thought, would
    be the model's to say."""
    if not after.startswith(opening) or _TOLD not in after:
        return None
    separator = after[len(opening) :].partition(_TOLD)[0]
    return None if separator.strip() else separator
