"""Which pre-training documents made a fine-tuned model say so?

    msif plan  --base B --tuned T --documents D --rows R     what it will take
    msif fit   --base B --tuned T --documents D --rows R     the curvature of both stages
    msif fit   … --aligned A --pairs P                       and of DPO, a third stage
    msif trace … --ask "Where was Ada born?"                 score all documents, fitting if need be
    msif show --open                                         the last trace again, in a browser
    msif study make                                          the study's own notebooks and reports

Models are folders or hub ids; --tuned may be a folder of adapters (LoRA), which are put on --base
in memory. Documents: a .jsonl, .parquet or .txt file, a folder of such files, or a data set's hub
id, read as a stream. Rows: a file of the same kinds with a prompt and an answer (or completion)
each, or with conversations, as `messages` of {"role": …, "content": …}: the tokenizer's chat
template renders them, the assistant's turns have the loss, of a question the last, and --ask is the
user's turn; prompt and completion may be lists of messages, too.
--aligned: a model that went on from --tuned by preferences (DPO), whose --pairs have a prompt,
chosen and rejected, as text or as messages; it is then the one that is asked. --among rows or pairs
scores these in place of the documents, --among all each of them: the page then has a tab for each.
What is computed goes to --folder, which also remembers the pair: after one call, `msif trace --ask
"…"` is enough. Interrupted, the same command goes on where it was.
"""

import argparse
import re
import sys
import warnings
import webbrowser
from importlib import import_module
from pathlib import Path

from msif import options
from msif.options import LONGEST_ANSWER, STUDY, remember, settings

# What a command ends with in one line; torch asserts that a device is there.
ERRORS = (ValueError, OSError, MemoryError, ArithmeticError, ImportError, RuntimeError)
ERRORS += (AssertionError, re.error)


def parser() -> argparse.ArgumentParser:
    """The command line's parser; options that are not given are not in what it parses."""
    return options.parser(__doc__)


class Work:
    """The pair and its texts, as the options name them."""

    def __init__(self, chosen: argparse.Namespace):
        import msif

        shared = {"dtype": chosen.dtype, "device": chosen.device, "pattern": chosen.pattern}
        self.chosen, self.columns = chosen, (chosen.prompt_column, chosen.answer_column)
        self.base = msif.load(chosen.base, **shared)
        self.tuned = msif.load(chosen.tuned, **_on(chosen.tuned, chosen.base), **shared)
        self.asked, self.pairs = self.tuned, []
        if chosen.aligned is not None:
            below = _last(chosen) if self.tuned.adapters else _on(chosen.aligned, chosen.tuned)
            self.asked = msif.load(chosen.aligned, **below, **shared)
            self.pairs = self.asked.preferences(chosen.pairs)
        self.documents = self._stream(chosen.limit)
        self.fitted = list(self._stream(chosen.fit_documents))
        self.rows = self.tuned.answers(chosen.rows, columns=self.columns)

    def _stream(self, limit):
        options = {"max_length": self.chosen.max_length, "column": self.chosen.text_column}
        return self.base.stream(self.chosen.documents, limit=limit, **options)

    def questions(self):
        """The questions as sequences, answers included."""
        from msif.core.data import NO_LOSS

        chosen = self.chosen
        told = max(sum(y != NO_LOSS for y in x.labels) for x in self.rows)
        options = {"new_tokens": chosen.new_tokens or min(told, LONGEST_ANSWER)}
        asked = chosen.questions or self._asked()
        return self.asked.questions(asked, columns=self.columns, **options)

    def _asked(self):
        """What --ask says, in the rows' format: a conversation where they are conversations."""
        from msif.core import forms

        rows = forms.read(self.chosen.rows, self.columns, 1)
        if not isinstance(rows, forms.Chats):
            return [(prompt, answer) for prompt, answer in self.chosen.ask]
        print("--ask is a turn of the user here, as the rows are conversations")
        asked = [
            ([{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}])
            for prompt, answer in self.chosen.ask
        ]
        told = [turns if turns[1][0]["content"] is not None else turns[:1] for turns in asked]
        if rows.loss == "rest":
            return [dict(zip(self.columns, turns)) for turns in told]
        return [sum(turns, []) for turns in told]

    def stages(self):
        """The stages, fitted in the folder where they are not yet."""
        import msif

        chosen = self.chosen
        shared = {"folder": chosen.folder, "samples": chosen.samples, "memory": chosen.memory}
        shared["batch_size"] = chosen.batch_size
        before = msif.fit(self.base, self.fitted, title="base", **shared)
        after = msif.fit(self.tuned, self.rows, title="tuned", **shared)
        found = [
            msif.Stage(self.base, before, damping=chosen.damping),
            msif.Stage(self.tuned, after, alpha=chosen.alpha),
        ]
        if self.pairs:
            of_dpo = {"start": self.tuned, "b": chosen.beta, "title": "aligned"}
            shared = {x: shared[x] for x in ("folder", "batch_size")}  # nothing is drawn
            last = msif.fit(self.asked, self.pairs, **of_dpo, **shared)
            found.append(msif.Stage(self.asked, last, alpha=chosen.aligned_alpha))
        return found


def _on(tuned, base):
    """Where adapters are put; nothing for a whole model."""
    return {"base": base} if (Path(tuned) / "adapter_config.json").exists() else {}


def _last(chosen):
    """Where --aligned is put after adapters of --tuned: where it says, if that is their merge."""
    from msif.core import adapters

    if not adapters.has_adapters(chosen.aligned):
        return {}
    first, last = (adapters.base_of(x)[0] for x in (chosen.tuned, chosen.aligned))
    if Path(last).resolve() in (Path(first).resolve(), Path(chosen.base).resolve()):
        raise ValueError(
            f"the adapters of --aligned {chosen.aligned} are on {last}, as those of --tuned are: a "
            f"stage that goes on training the same adapters is not traced. If they were trained on "
            f"the merge of --tuned, name it in {adapters.CONFIG}, as base_model_name_or_path: "
            f"{chosen.tuned} itself, or a folder that the merge was saved to"
        )
    return {}


def plan(chosen: argparse.Namespace) -> None:
    """Print what fitting and scoring take."""
    import msif

    work = Work(chosen)
    timed = {"batch_size": chosen.batch_size, "seconds": chosen.seconds}
    for name, model, sequences in (
        ("base", work.base, work.fitted),
        ("tuned", work.tuned, work.rows),
    ):
        fitting = {"samples": chosen.samples, "memory": chosen.memory}
        print(f"{name}: {msif.plan(model, sequences, **fitting, **timed)}")
    if work.pairs:
        print(f"aligned: {msif.plan(work.asked, work.pairs, **timed)}")
    print(f"scoring: {msif.plan(work.base, work.fitted, questions=1, **timed)}")
    print("(these documents are those that are fitted on; scoring more takes as much for each)")


def fit(chosen: argparse.Namespace) -> None:
    """Fit the stages into the folder."""
    work = Work(chosen)
    remember(chosen)
    fitted = work.stages()
    all_of = "both" if len(fitted) == 2 else f"all {len(fitted)}"
    print(f'{chosen.folder} has the factors of {all_of} stages; next: msif trace --ask "…"')


def _kinds(chosen):
    """What is scored."""
    kinds = ["documents", "rows", *["pairs"] * (chosen.pairs is not None)]
    return kinds if chosen.among == "all" else [chosen.among]


def _scored(work, stages, asked, kind):
    """The scores of one kind; of pairs in memory, of others in the folder."""
    import msif

    chosen = work.chosen
    stage, among = {
        "documents": (0, work.documents),
        "rows": (1, work.rows),
        "pairs": (2, work.pairs),
    }[kind]
    shared = {"top": chosen.top, "batch_size": chosen.batch_size, "stage": stage}
    if kind != "pairs":
        shared["folder"] = chosen.folder
    title = "scores" if chosen.among != "all" else f"scores of {kind}"
    return msif.trace(stages, asked, among, title=title, **shared)


def trace(chosen: argparse.Namespace) -> None:
    """Score, and print and write what stands first."""
    import msif
    from msif.core.generation import own_share
    from msif.scale.processes import rank_and_size

    work = Work(chosen)
    asked = work.questions()
    remember(chosen)
    stages = work.stages()
    rank = rank_and_size()[0]
    kinds = [kind for kind in _kinds(chosen) if kind != "pairs" or not rank]
    found = [_scored(work, stages, asked, kind) for kind in kinds]
    remember(chosen, traced=True)
    if rank:
        return
    one = len(found) == 1 and isinstance(found[0].found, Path)
    page = (found[0].found if one else Path(chosen.folder)) / "explorer.html"
    tables = []
    for scores in found:
        in_memory = not isinstance(scores.found, Path)
        tables.append(
            Path(chosen.folder) / "pairs.parquet" if in_memory else scores.found / "top.parquet"
        )
        scores.write_parquet(tables[-1], normalised=not chosen.raw)
    msif.show(found, page)
    share = own_share(work.tuned.tracked.model, work.rows[:256])
    for kind, scores in zip(kinds, found):
        told = f"\n{kind}" if len(found) > 1 else ""
        print(f"{told}\n{scores.table(normalised=not chosen.raw)}\n")
    alphas = f"{chosen.alpha:g}" + f", {chosen.aligned_alpha:g}" * bool(work.pairs)
    print(f"damping {chosen.damping:g}, α {alphas}; of its fine-tuning rows' answers, the")
    print(f"tuned model would itself write {share:.0%} of the tokens")
    for table in tables:
        print(f"table  {table}")
    print(f"page   {page}")
    if getattr(chosen, "open", False):
        webbrowser.open(page.resolve().as_uri())


def study(what: str, arguments: list[str]) -> int:
    """Hand over to a command of the study; its exit code."""
    module, before, _ = STUDY[what]
    sys.argv = [f"msif study {what}", *before, *arguments]
    return import_module(f"msif.study.{module}").main() or 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for an error (one line says which), 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["study"] and arguments[1:2] and arguments[1] in STUDY:
        return study(arguments[1], arguments[2:])
    given = parser().parse_args(arguments)
    warnings.showwarning = _warned(said := [])
    try:
        chosen = settings(given)
        for prompt in (x for x, _ in chosen.ask or [] if "\\n" in x):
            tell = "has a backslash and an n; a new line is $'…\\n…' in bash"
            warnings.warn(f"--ask {prompt!r} {tell}", stacklevel=1)
        {"plan": plan, "fit": fit, "trace": trace, "show": trace}[given.command](chosen)
    except KeyboardInterrupt:
        print("\nmsif: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except ERRORS as error:
        print(f"msif {given.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    for message in said if given.command in ("trace", "show") else []:
        print(f"warning: {message}", file=sys.stderr)  # again, below the table
    return 0


def _warned(said):
    """Print a warning as one line, once, and note it."""

    def show(message, *_):
        if str(message) not in said:
            said.append(str(message))
            print(f"warning: {message}", file=sys.stderr)

    return show


if __name__ == "__main__":
    sys.exit(main())
