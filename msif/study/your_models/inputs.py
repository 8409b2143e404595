"""A pair of one's own, as params.yaml names it: looked at before anything is loaded.

A source is a path, which counts from the root of the study, or a hub id.
"""

from dataclasses import dataclass
from pathlib import Path

from msif.core.data import FORMATS, load_rows
from msif.study.paths import root

EXPECTED = {
    "base": "the pre-trained model, a folder or a hub id",
    "tuned": "the model fine-tuned from it, a folder or a hub id",
    "documents": "pre-training texts, a .jsonl, .parquet or .txt file, a folder or a hub id",
    "rows": 'fine-tuning rows, the same with "prompt" and "answer"',
}
QUESTIONS = (
    'expected a list of {"prompt": …, "answer": …}, where the answer may be left out (then the '
    "tuned model's own greedy answer is traced), or the path of a .jsonl file of these or of a "
    ".txt file of prompts"
)


@dataclass(frozen=True)
class Pair:
    """Sources of one's own, local ones as absolute paths, and the questions: [{"prompt": text,
    "answer": text, or None for the tuned model's own}]."""

    base: str
    tuned: str
    documents: str
    rows: str
    questions: list[dict]


def given(base, tuned, documents, rows, questions):
    """The `Pair` that these parameters name; None for the small pair, where the four are None.

    Raises, before any model is read, ValueError for parameters that are missing or not as expected,
    FileNotFoundError for a path that is not there."""
    sources = dict(zip(EXPECTED, (base, tuned, documents, rows), strict=True))
    missing = [name for name, source in sources.items() if source is None]
    if len(missing) == len(sources):
        if isinstance(questions, bool) or not isinstance(questions, int) or questions < 1:
            raise ValueError(
                f"questions is {questions!r}: without a pair of your own, expected how many of the "
                f"small pair's questions are asked, at least 1"
            )
        return None
    if missing:
        there = ", ".join(name for name in sources if name not in missing)
        wanted = "; ".join(f"{name}: {EXPECTED[name]}" for name in missing)
        raise ValueError(
            f"{there} {'is' if len(sources) - len(missing) == 1 else 'are'} given, "
            f"{', '.join(missing)} not. A pair of your own needs all four; expected {wanted}"
        )
    found = {name: resolved(name, source) for name, source in sources.items()}
    for name in ("base", "tuned"):
        folder = local(name, sources[name])
        if folder and not (folder / "config.json").is_file():
            raise ValueError(
                f"{name} is {folder}, where no config.json is; expected a model's folder, as "
                f"`save_pretrained` of transformers writes it"
            )
    return Pair(**found, questions=asked(questions))


def local(name, source):
    """The absolute path of a local source, None for a hub id.

    Raises ValueError for what is no text, FileNotFoundError for a path that is not there."""
    if not isinstance(source, str) or not source:
        what = EXPECTED.get(name, "a path")
        raise ValueError(f"{name} is {source!r}; expected {what}")
    path = root() / Path(source).expanduser()
    if path.exists():
        return path
    first, *rest = Path(source).parts
    named = source.startswith(("/", ".", "~")) or Path(source).suffix in FORMATS or len(rest) > 1
    if named or (rest and (root() / first).is_dir()):
        raise FileNotFoundError(
            f"{name} is {source}, and there is no {path}: paths count from the root of the study, "
            f"{root()}"
        )
    return None


def resolved(name, source):
    """A source as models and texts are loaded from it, whatever the working directory."""
    return str(local(name, source) or source)


def asked(questions):
    """The questions of a list or file: [{"prompt": text, "answer": text or None}]."""
    if isinstance(questions, str):
        return _read(local("questions", questions), questions)
    if not isinstance(questions, list | tuple) or not questions:
        raise ValueError(f"questions is {questions!r}: with a pair of your own, {QUESTIONS}")
    return [_question(number, entry) for number, entry in enumerate(questions, 1)]


def _read(path, source):
    """The questions of a file."""
    if path is None or not path.is_file():
        raise ValueError(f"questions is {source!r}, which is no file: {QUESTIONS}")
    if path.suffix == ".txt":
        return [{"prompt": row["text"], "answer": None} for row in load_rows(path, ["text"])]
    return load_rows(path, ["prompt"], ["answer"])


def _question(number, entry):
    """Question `number`, counted from 1."""
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError(f'question {number} has no "prompt", it is {entry!r}: {QUESTIONS}')
    prompt, answer = entry["prompt"], entry.get("answer")
    if unknown := sorted(set(entry) - {"prompt", "answer"}):
        raise ValueError(f"question {number} has an unknown {unknown[0]!r}: {QUESTIONS}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"question {number} has the prompt {prompt!r}; expected text")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise ValueError(
            f"question {number} has the answer {answer!r}; expected text, or none for the tuned "
            f"model's own"
        )
    return {"prompt": prompt, "answer": answer}
