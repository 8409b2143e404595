"""Run one notebook of the study, or say what runs cost.

    python -m msif.study.pipeline.run 01_testbed tiny    that notebook, as tiny.testbed says
    python -m msif.study.pipeline.run --timings [tiny]   seconds and peak memory of the last runs

papermill executes the notebook with that section of params.yaml. The executed copy lands in
results/<profile>/notebooks/, less what differs between equal runs; what the run cost in
scratch/timings/, on which nothing depends. What the notebook's own cell says otherwise is told,
and left out.
"""

import argparse
import json
import os
import re
import resource
import sys
import time
from contextlib import contextmanager

from msif.core.extras import need
from msif.core.files import write_json
from msif.study.notebook import PIPELINE
from msif.study.paths import results, root, scratch
from msif.study.pipeline.profiles import known, parameters, profiles
from msif.study.pipeline.sources import edited

# Kernel and runner talk over a local port that other users of the machine could listen to.
ENCRYPTED = {"KernelManager": {"transport_encryption": "auto"}}


def without_clock(nb):
    """Drop times, progress bars, Python's version and papermill's random cell id.

    Equal runs then leave equal bytes."""
    coalesce = need("nbconvert.preprocessors.coalescestreams").CoalesceStreamsPreprocessor()
    nb.metadata.pop("papermill", None)
    nb.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(nb.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            coalesce.preprocess_cell(cell, {}, number)  # progress had cut stdout into pieces
    return nb


def run(name, profile):
    """Execute notebooks/<name>.ipynb for one profile and return the path of the executed copy.

    Raises ValueError before anything runs for a bad name; when a cell fails, papermill's error
    with a note of where the executed copy and its traceback are kept.
    """
    given, source = parameters(name, profile), root() / "notebooks" / f"{name}.ipynb"
    draft = scratch("executed", profile, f"{name}.ipynb")
    out = results(profile, "notebooks", f"{name}.ipynb")
    # The study's models are too small to share among threads: one is as fast, is not slowed by
    # other work on the machine, and gives the same numbers whatever the number of cores. For
    # larger models on a CPU, set the variable yourself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    try:
        with _pipeline():
            nb = need("papermill").execute_notebook(
                source,
                draft,
                parameters=given,
                cwd=source.parent,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                config=need("traitlets.config").Config(ENCRYPTED),
            )
    except Exception as error:
        error.add_note(
            f"\n{name} failed for {profile}. The executed copy, with the traceback: {draft}"
        )
        raise
    record(profile, name, time.perf_counter() - start, peak_memory())
    need("nbformat").write(without_clock(nb), draft)
    os.replace(draft, out)
    return out


def told(error):
    """What went wrong in a notebook, in a few lines: the lines of code that it went through first
    and last, its message, and where the executed copy has the rest."""
    notes = "\n".join(getattr(error, "__notes__", []))
    if not hasattr(error, "traceback"):  # no cell failed: the kernel died, the disk is full
        return f"{type(error).__name__}: {_cut(str(error))}{notes}"
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))
    steps = re.findall(
        r"^(Cell In ?\[\d+\], line \d+|File .+:\d+)[\s\S]*?^-+> \d+ *(.*)$", text, re.M
    )
    shown = [f"    {place}: {_cut(code, 100)}" for place, code in [*steps[:1], *steps[1:][-1:]]]
    if len(steps) > 2:
        shown.insert(1, "    …")
    lines = [f"cell [{error.exec_count}] failed:", *shown, f"{error.ename}: {_cut(error.evalue)}"]
    return "\n".join(lines) + notes


def _cut(text, width=1500):
    return text if len(text) <= width else f"{text[: width - 2]} …"


@contextmanager
def _pipeline():
    """The kernel that starts in here is told that no person runs its notebook."""
    before = os.environ.get(PIPELINE)
    os.environ[PIPELINE] = "1"
    try:
        yield
    finally:
        os.environ.pop(PIPELINE) if before is None else os.environ.update({PIPELINE: before})


def peak_memory():
    """The largest resident size, in MB (2**20 bytes), of a finished child process: the kernel's.

    A child starts as a copy of its parent, so that this is never less than this process's own
    100 MB or so."""
    unit = (
        2**20 if sys.platform == "darwin" else 2**10
    )  # getrusage(2): bytes on macOS, else kilobytes
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def record(profile, name, seconds, megabytes):
    """What one notebook's last run cost, in scratch/timings/<profile>/<name>.json."""
    cost = {"seconds": round(seconds, 1), "peak_mb": round(megabytes)}
    write_json(scratch("timings", profile, f"{name}.json"), cost)


def timings(*chosen):
    """A table of what each notebook's last run took, for the profiles named, or for all."""
    lines = [f"{'profile':<10} {'stage':<24} {'seconds':>9} {'peak MB':>9}"]
    for profile in chosen or profiles():
        folder = scratch("timings", known(profile, "profile", profiles()), "x").parent
        for path in sorted(folder.glob("*.json")):
            cost = json.loads(path.read_text())
            row = f"{cost['seconds']:>9.1f} {cost['peak_mb']:>9.0f}"
            lines.append(f"{profile:<10} {path.stem:<24} {row}")
    return "\n".join(lines) if len(lines) > 1 else "nothing has run yet; start with: make study"


def main():
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("notebook", nargs="?", help="name in notebooks/, without .ipynb")
    parser.add_argument("profile", nargs="?", help="section of params.yaml")
    parser.add_argument(
        "--timings", nargs="*", metavar="PROFILE", help="print what runs cost, and stop"
    )
    args = parser.parse_args()
    if args.timings is None and args.profile is None:
        parser.error("a notebook and a profile are needed, such as: 01_testbed tiny")
    try:
        if args.timings is not None:
            return print(timings(*args.timings))
        parameters(args.notebook, args.profile)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"msif.study.pipeline.run: {error}\n")
    print(f"{args.notebook} for {args.profile}", *edited(args.notebook), sep="\n", flush=True)
    try:
        run(args.notebook, args.profile)
    except Exception as error:
        parser.exit(1, f"\nmsif.study.pipeline.run: {told(error)}\n")
    print(timings(args.profile))


if __name__ == "__main__":
    main()
