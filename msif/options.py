"""The options of the command line: what they are, and which of them a folder remembers."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORK = "msif-work"
LONGEST_ANSWER = 32  # tokens of the model's own answer, whatever the rows' answers are


@dataclass(frozen=True)
class Option:
    """An option of the commands.

    group: under which heading. default: where it is neither given nor remembered.
    """

    group: str
    name: str
    default: Any
    metavar: str
    help: str
    type: type = str


PAIR, TEXTS, HOW = "the pair and its texts", "reading the texts", "computing"
QUESTIONS, SCORES, DPO = "questions", "scores", "a stage of preferences (DPO) after fine-tuning"
OPTIONS = (
    Option(PAIR, "base", None, "MODEL", "the pre-trained model"),
    Option(PAIR, "tuned", None, "MODEL", "the model fine-tuned from it, or its adapters (LoRA)"),
    Option(PAIR, "documents", None, "TEXTS", "pre-training documents"),
    Option(PAIR, "rows", None, "TEXTS", "fine-tuning rows, in the format that was trained on"),
    Option(DPO, "aligned", None, "MODEL", "what DPO made of --tuned, or its adapters (LoRA)"),
    Option(DPO, "pairs", None, "TEXTS", "its rows of prompt, chosen and rejected"),
    Option(DPO, "beta", 0.1, "X", "its beta, as trl has it", float),
    Option(TEXTS, "text_column", "text", "NAME", "column of the documents"),
    Option(TEXTS, "prompt_column", "prompt", "NAME", "column of rows and questions"),
    Option(TEXTS, "answer_column", "answer", "NAME", "the same; or completion, by itself"),
    Option(TEXTS, "max_length", 2048, "TOKENS", "where documents are cut, at the latest", int),
    Option(HOW, "fit_documents", 2000, "N", "fit pre-training on the first N documents", int),
    Option(HOW, "samples", 2, "N", "pseudo-gradients a sequence, for fitting", int),
    Option(HOW, "pattern", None, "REGEX", "layers to track; else those of attention and MLP"),
    Option(HOW, "dtype", "float32", "TYPE", "of the weights; bfloat16 halves their memory"),
    Option(HOW, "device", None, "NAME", "cpu, cuda, …; else the GPU, where there is one"),
    Option(HOW, "memory", None, "SIZE", "for fitting, such as 16GiB; else what is free"),
    Option(HOW, "batch_size", 32, "N", "sequences at once", int),
    Option(
        QUESTIONS,
        "questions",
        None,
        "FILE",
        ".jsonl of rows, perhaps without answers; .txt, a prompt a line",
    ),
    Option(
        QUESTIONS,
        "new_tokens",
        None,
        "N",
        f"of its own answer; else as in the longest row, at most {LONGEST_ANSWER}",
        int,
    ),
    Option(SCORES, "among", "documents", "WHAT", "what is scored: documents, rows, pairs or all"),
    Option(SCORES, "limit", None, "N", "score so many documents at most", int),
    Option(SCORES, "damping", 1e-3, "X", "of pre-training, × the mean eigenvalue", float),
    Option(SCORES, "alpha", 0.1, "X", "of fine-tuning, × the mean eigenvalue", float),
    Option(SCORES, "aligned_alpha", 1e-3, "X", "of preferences, × the mean eigenvalue", float),
    Option(SCORES, "top", 10, "N", "documents shown for a question", int),
)
LAST_TRACE = {x.name for x in OPTIONS if x.group in (QUESTIONS, SCORES)} | {"ask", "raw"}
PLACES = {x.name for x in OPTIONS if x.metavar in ("MODEL", "TEXTS", "FILE")}
FLEETING = ("device", "memory", "command", "folder", "open")  # not remembered

COMMANDS = {  # name: (groups, help)
    "plan": ((PAIR, DPO, TEXTS, HOW), "say what fitting and scoring take, before they start"),
    "fit": ((PAIR, DPO, TEXTS, HOW), "fit the curvature of the stages"),
    "trace": ((PAIR, DPO, QUESTIONS, SCORES, TEXTS, HOW), "score the documents for your questions"),
    "show": ((PAIR, DPO, QUESTIONS, SCORES, TEXTS, HOW), "the last trace again, as table and page"),
}
STUDY = {  # name: (module of msif.study, what stands before its arguments, help)
    "make": ("pipeline.study", [], "run what has changed, publish reports: [PROFILE] [--record]"),
    "run": ("pipeline.run", [], "run one notebook: NOTEBOOK PROFILE"),
    "timings": ("pipeline.run", ["--timings"], "what the last runs took: [PROFILE …]"),
    "report": ("pipeline.report", [], "render a profile's executed notebooks: PROFILE"),
    "index": ("pipeline.overview", [], "write reports/index.html"),
    "claims": ("pipeline.claims", [], "do reports print what they claim? [--write]"),
    "preflight": ("case_studies.preflight", [], "what a profile of large models takes: PROFILE"),
}


class _Answer(argparse.Action):
    """--answer belongs to the --ask before it; `ask` is a list of [prompt, answer or None]."""

    def __call__(self, parser, namespace, values, option_string=None):
        asked = getattr(namespace, "ask", [])
        if self.dest == "ask":
            namespace.ask = [*asked, [values, None]]
        elif not asked or asked[-1][1] is not None:
            parser.error(f"--answer {values!r} has no --ask before it that it could belong to")
        else:
            asked[-1][1] = values


def parser(description: str) -> argparse.ArgumentParser:
    """The command line's parser; options that are not given are not in what it parses."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="msif", description=description, formatter_class=layout)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (groups, text) in COMMANDS.items():
        told = f"{text[0].upper()}{text[1:]}. What the options mean to each other: msif --help."
        one = commands.add_parser(name, help=text, description=told)
        one.add_argument("--folder", default=WORK, help=f"where all is kept (default: {WORK})")
        for group in groups:
            _add(one.add_argument_group(group), group)
        if name == "plan":
            told = "also run a few batches for about so long here, and say the time (10 do)"
            one.add_argument("--seconds", type=float, default=0, metavar="S", help=told)
        if name == "show":
            one.add_argument("--open", action="store_true", help="open the page in a browser")
    study = commands.add_parser("study", help="the study: its notebooks, reports and profiles")
    inner = study.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, _, text) in STUDY.items():
        inner.add_parser(name, help=text, add_help=False)
    return top


def _add(target, group):
    shared = {"default": argparse.SUPPRESS}
    if group == QUESTIONS:
        tell = "the answer to the --ask before it; without one, the model's own is traced"
        target.add_argument("--ask", action=_Answer, metavar="PROMPT", help="repeatable", **shared)
        target.add_argument("--answer", action=_Answer, metavar="TEXT", help=tell, **shared)
    for x in (x for x in OPTIONS if x.group == group):
        flag, rest = f"--{x.name.replace('_', '-')}", {"type": x.type, "metavar": x.metavar}
        default = "" if x.default is None else f" (default: {x.default})"
        target.add_argument(flag, help=f"{x.help}{default}", **rest, **shared)
    if group == SCORES:
        target.add_argument(
            "--raw", action="store_true", help="rank by df/dw itself, not by df/dw / norm", **shared
        )


def settings(given: argparse.Namespace) -> argparse.Namespace:
    """The options given, those that the folder remembers, and the defaults, in this order.

    Remembered is the pair, and how it is read and fitted; by `show`, the last trace too. Paths that
    exist are told from the root on. Raises ValueError for a pair that is not whole, no question,
    what cannot be scored, and a folder that is something else.
    """
    folder, now = Path(given.folder), vars(given)
    path = folder / "settings.json"
    if folder.exists() and not (folder.is_dir() and (path.exists() or not any(folder.iterdir()))):
        raise ValueError(
            f"--folder {folder} is not one that msif has made: expected a new or empty folder"
        )
    kept = _remembered(path)
    kept = {name: x for name, x in kept.items() if name not in _forgotten(given, now)}
    defaults = {x.name: x.default for x in OPTIONS} | {"ask": None, "raw": False}
    found = {**defaults, **kept, **now}
    if missing := [f"--{x.name}" for x in OPTIONS if x.group == PAIR and not found[x.name]]:
        raise ValueError(
            f"{', '.join(missing)} expected: {folder} remembers no earlier call with it "
            f"(msif {given.command} --help says what it may be)"
        )
    asks = given.command in ("trace", "show")
    if asks and not (found["ask"] or found["questions"]):
        raise ValueError('no question: expected --ask "…", or --questions FILE')
    if {"ask", "questions"} <= now.keys():
        raise ValueError("--ask and --questions: expected one of them")
    for x in OPTIONS:
        _check(x, found[x.name], path if x.name in kept and x.name not in now else "")
    if type(found["raw"]) is not bool:
        raise ValueError(f"{path} is damaged (raw): remove it, and name the pair anew")
    if found["ask"] is not None and not _are_questions(found["ask"]):
        raise ValueError(f"{path} is damaged (ask): remove it, and name the pair anew")
    if (found["aligned"] is None) != (found["pairs"] is None):
        raise ValueError("--aligned and --pairs belong together: expected both, or neither")
    kinds = ("documents", "rows", *["pairs"] * (found["pairs"] is not None), "all")
    if found["among"] not in kinds:
        raise ValueError(f"--among is {found['among']!r}: expected {' or '.join(kinds)}")
    again = [x for x in kept if x not in now and kept[x] != defaults[x] and x != "ask"]
    if again:
        told = ", ".join(f"--{x.replace('_', '-')} {kept[x]}" for x in again)
        print(f"remembered from {path}: {told}")
    return argparse.Namespace(**{name: _whole(name, x) for name, x in found.items()})


def _check(option, value, path):
    """ValueError for a value that no command can mean, before it is remembered; path: where it is
    remembered."""
    if value is None and option.default is None:
        return
    right, expected = isinstance(value, str), "text"
    if option.type is int:
        least = 2 if option.name == "max_length" else 1
        right = type(value) is int and value >= least
        expected = f"a whole number, at least {least}"
    if option.type is float:
        right = type(value) in (int, float) and 0 <= value < float("inf")
        expected = "a finite number, at least 0"
    if not right:
        flag = f"--{option.name.replace('_', '-')}"
        place = f", in {path}" if path else ""
        raise ValueError(f"{flag} is {value!r}{place}: expected {expected}")


def _are_questions(asked):
    def text(x):
        return isinstance(x, str)

    return isinstance(asked, list) and all(
        isinstance(x, list) and len(x) == 2 and text(x[0]) and (x[1] is None or text(x[1]))
        for x in asked
    )


def _remembered(path):
    """The options that a folder remembers, those that this version knows."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}")
        return {x: found[x] for x in [*(x.name for x in OPTIONS), "ask", "raw"] if x in found}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and name the pair anew"
        ) from error


def _forgotten(given, now):
    """Names of remembered options that do not hold for this call."""
    names = set() if given.command == "show" else set(LAST_TRACE)
    if {"ask", "questions"} & now.keys():
        names |= {"ask", "questions"}
    if "documents" in now:
        names |= {"text_column"}
    if "rows" in now:
        names |= {"prompt_column", "answer_column"}
    return names


def remember(chosen: argparse.Namespace, traced: bool = False) -> None:
    """Keep the pair in the folder, for the next call; once it is `traced` also the questions and
    what was scored, for `show`: until then those of the last trace stay."""
    from msif.core.files import write_json
    from msif.scale.processes import rank_and_size

    if rank_and_size()[0]:
        return
    path = Path(chosen.folder) / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: x for name, x in vars(chosen).items() if name not in FLEETING}
    if not traced:
        before = _remembered(path)
        kept = {name: x for name, x in kept.items() if name not in LAST_TRACE}
        kept |= {name: x for name, x in before.items() if name in LAST_TRACE}
    write_json(path, kept)


def _whole(name, value):
    """A path that exists, from the root on, as the next call may come from another directory; hub
    ids and all else as they are."""
    there = name in PLACES and value is not None and Path(value).exists()
    return str(Path(value).absolute()) if there else value
