"""Which pre-training documents made a fine-tuned model say so?

    msif plan  --base B --tuned T --documents D --rows R     what it will take; nothing is computed
    msif fit   --base B --tuned T --documents D --rows R     the curvature of both stages
    msif trace … --ask "Where was Ada born?"                 score all documents, fitting if need be
    msif show                                                the last trace again, in a browser
    msif study make                                          the study's own notebooks and reports

Models are folders or hub ids (safetensors). Documents: a .jsonl, .parquet or .txt file, a folder of
such files, or a data set's hub id, read as a stream. Rows: a file of the same kinds with a prompt
and an answer each. What is computed goes to --folder, which also remembers the options: after one
call, `msif trace --ask "…"` is enough. Interrupted, the same command goes on where it was.
"""

import argparse
import json
import runpy
import sys
import warnings
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORK = "msif-work"


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
QUESTIONS, SCORES = "questions", "scores"
OPTIONS = (
    Option(PAIR, "base", None, "MODEL", "the pre-trained model"),
    Option(PAIR, "tuned", None, "MODEL", "the model fine-tuned from it"),
    Option(PAIR, "documents", None, "TEXTS", "pre-training documents"),
    Option(PAIR, "rows", None, "TEXTS", "fine-tuning rows, in the format that was trained on"),
    Option(TEXTS, "text_column", "text", "NAME", "column of the documents"),
    Option(TEXTS, "prompt_column", "prompt", "NAME", "column of rows and questions"),
    Option(TEXTS, "answer_column", "answer", "NAME", "column of rows and questions"),
    Option(TEXTS, "max_length", 2048, "TOKENS", "where documents are cut, at the latest", int),
    Option(TEXTS, "limit", None, "N", "read so many documents at most", int),
    Option(HOW, "fit_documents", 2000, "N", "fit pre-training on the first N documents", int),
    Option(HOW, "samples", 2, "N", "pseudo-gradients a sequence, for fitting", int),
    Option(HOW, "pattern", None, "REGEX", "layers to track; else those of attention and MLP"),
    Option(HOW, "dtype", "float32", "TYPE", "of the weights; bfloat16 halves their memory"),
    Option(HOW, "device", None, "NAME", "cpu, cuda, …; else the GPU, where there is one"),
    Option(HOW, "memory", None, "SIZE", "for fitting, such as 16GiB; else what is free"),
    Option(HOW, "batch_size", 32, "N", "sequences at once", int),
    Option(QUESTIONS, "questions", None, "FILE", ".jsonl with prompt and answer, or .txt"),
    Option(
        QUESTIONS, "new_tokens", None, "N", "of its own answer; else as in the longest row", int
    ),
    Option(SCORES, "among", "documents", "WHAT", "what is scored: documents or rows"),
    Option(SCORES, "damping", 1e-3, "X", "of pre-training, × the mean eigenvalue", float),
    Option(SCORES, "alpha", 0.1, "X", "of fine-tuning, × the mean eigenvalue", float),
    Option(SCORES, "top", 10, "N", "documents shown for a question", int),
)
FLEETING = ("device", "memory", "command", "folder", "raw", "open")  # not remembered
LONGEST_ANSWER = 32  # tokens of the model's own answer, whatever the rows' answers are

COMMANDS = {  # name: (groups, help)
    "plan": ((PAIR, TEXTS, HOW), "say what fitting and scoring take, and compute nothing"),
    "fit": ((PAIR, TEXTS, HOW), "fit the curvature of both stages"),
    "trace": ((PAIR, QUESTIONS, SCORES, TEXTS, HOW), "score the documents for your questions"),
    "show": ((PAIR, QUESTIONS, SCORES, TEXTS, HOW), "the last trace again, as table and page"),
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


def parser() -> argparse.ArgumentParser:
    """The command line's parser; options that are not given are not in what it parses."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="msif", description=__doc__, formatter_class=layout)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (groups, text) in COMMANDS.items():
        one = commands.add_parser(name, help=text, description=__doc__, formatter_class=layout)
        one.add_argument("--folder", default=WORK, help=f"where all is kept (default: {WORK})")
        for group in groups:
            _add(one.add_argument_group(group), group)
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

    Raises ValueError for a pair that is not whole, no question, and what cannot be scored.
    """
    path, now = Path(given.folder) / "settings.json", vars(given)
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if {"ask", "questions"} & now.keys():  # these questions, in place of those remembered
        kept = {name: x for name, x in kept.items() if name not in ("ask", "questions")}
    defaults = {x.name: x.default for x in OPTIONS} | {"ask": None, "raw": False}
    found = {**defaults, **kept, **now}
    if missing := [f"--{x.name}" for x in OPTIONS if x.group == PAIR and not found[x.name]]:
        raise ValueError(
            f"{', '.join(missing)} expected: {given.folder} remembers no earlier call with it "
            f"(msif {given.command} --help says what it may be)"
        )
    asks = given.command in ("trace", "show")
    if asks and not (found["ask"] or found["questions"]):
        raise ValueError('no question: expected --ask "…", or --questions FILE')
    if found["among"] not in ("documents", "rows"):
        raise ValueError(f"--among is {found['among']!r}: expected documents or rows")
    for name in [x for x in kept if x not in now and kept[x] != defaults[x]]:
        print(f"as before: {name.replace('_', '-')} {kept[name]}")
    return argparse.Namespace(**found)


def remember(chosen: argparse.Namespace) -> None:
    """Keep the options in the folder, for the next call."""
    from msif.core.files import write_json
    from msif.scale.processes import rank_and_size

    if rank_and_size()[0]:
        return
    Path(chosen.folder).mkdir(parents=True, exist_ok=True)
    kept = {name: x for name, x in vars(chosen).items() if name not in FLEETING}
    write_json(Path(chosen.folder) / "settings.json", kept)


class Work:
    """The pair and its texts, as the options name them."""

    def __init__(self, chosen: argparse.Namespace):
        import msif

        shared = {"dtype": chosen.dtype, "device": chosen.device, "pattern": chosen.pattern}
        self.chosen, self.columns = chosen, (chosen.prompt_column, chosen.answer_column)
        self.base, self.tuned = (msif.load(x, **shared) for x in (chosen.base, chosen.tuned))
        self.documents = self._stream(chosen.limit)
        self.fitted = list(self._stream(min(chosen.fit_documents, chosen.limit or sys.maxsize)))
        self.rows = self.tuned.answers(chosen.rows, columns=self.columns)
        remember(chosen)

    def _stream(self, limit):
        options = {"max_length": self.chosen.max_length, "column": self.chosen.text_column}
        return self.base.stream(self.chosen.documents, limit=limit, **options)

    def questions(self):
        """The questions as sequences, answers included."""
        from msif.core.data import NO_LOSS

        chosen = self.chosen
        told = max(sum(y != NO_LOSS for y in x.labels) for x in self.rows)
        options = {"new_tokens": chosen.new_tokens or min(told, LONGEST_ANSWER)}
        asked = chosen.questions or [(prompt, answer) for prompt, answer in chosen.ask]
        return self.tuned.questions(asked, columns=self.columns, **options)

    def stages(self):
        """Both stages, fitted in the folder where they are not yet."""
        import msif

        chosen = self.chosen
        shared = {"folder": chosen.folder, "samples": chosen.samples, "memory": chosen.memory}
        shared["batch_size"] = chosen.batch_size
        before = msif.fit(self.base, self.fitted, title="base", **shared)
        after = msif.fit(self.tuned, self.rows, title="tuned", **shared)
        return [
            msif.Stage(self.base, before, damping=chosen.damping),
            msif.Stage(self.tuned, after, alpha=chosen.alpha),
        ]


def plan(chosen: argparse.Namespace) -> None:
    """Print what fitting and scoring take."""
    import msif

    work = Work(chosen)
    shared = {"batch_size": chosen.batch_size}
    for name, model, sequences in (
        ("base", work.base, work.fitted),
        ("tuned", work.tuned, work.rows),
    ):
        fitting = {"samples": chosen.samples, "memory": chosen.memory}
        print(f"{name}: {msif.plan(model, sequences, **fitting, **shared)}")
    print(f"scoring: {msif.plan(work.base, work.fitted, questions=1, **shared)}")
    print("(these documents are those that are fitted on; scoring more takes as much for each)")


def fit(chosen: argparse.Namespace) -> None:
    """Fit both stages into the folder."""
    Work(chosen).stages()
    print(f'{chosen.folder} has the factors of both stages; next: msif trace --ask "…"')


def trace(chosen: argparse.Namespace) -> None:
    """Score, and print and write what stands first."""
    import msif
    from msif.scale.processes import rank_and_size

    work = Work(chosen)
    asked, stages = work.questions(), work.stages()
    scored, stage = (work.rows, 1) if chosen.among == "rows" else (work.documents, 0)
    shared = {"folder": chosen.folder, "top": chosen.top, "batch_size": chosen.batch_size}
    scores = msif.trace(stages, asked, scored, stage=stage, title="scores", **shared)
    if rank_and_size()[0]:
        return
    table, page = scores.found / "top.parquet", scores.found / "explorer.html"
    scores.write_parquet(table, normalised=not chosen.raw)
    msif.show(scores, page)
    print(f"\n{scores.table(normalised=not chosen.raw)}\n")
    print("score: df/dw, nats per unit of document weight; normalised: over the gradient's norm")
    print(f"table  {table}\npage   {page}")
    if getattr(chosen, "open", False):
        webbrowser.open(page.resolve().as_uri())


def study(what: str, arguments: list[str]) -> None:
    """Hand over to a command of the study."""
    module, before, _ = STUDY[what]
    sys.argv = [f"msif study {what}", *before, *arguments]
    runpy.run_module(f"msif.study.{module}", run_name="__main__")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for an error (one line says which), 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["study"] and arguments[1:2] and arguments[1] in STUDY:
        study(arguments[1], arguments[2:])
        return 0
    given = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        chosen = settings(given)
        {"plan": plan, "fit": fit, "trace": trace, "show": trace}[given.command](chosen)
    except KeyboardInterrupt:
        print("\nmsif: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, ArithmeticError, ImportError, RuntimeError) as error:
        print(f"msif {given.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
