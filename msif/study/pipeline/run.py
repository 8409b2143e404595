"""Run one notebook of the study, say what it cost, or switch a profile on.

    python -m msif.study.pipeline.run 01_testbed tiny    execute notebooks/01_testbed.ipynb with the section tiny.testbed
    python -m msif.study.pipeline.run --timings [tiny]   seconds and peak memory of each notebook's last run
    python -m msif.study.pipeline.run --enable full      add `full` to the profiles that `dvc repro` runs

papermill executes the notebook with that section of params.yaml. The executed copy lands in
results/<profile>/, less what differs between equal runs; what the run cost in timings.json there, on which
nothing depends.
"""

import argparse
import json
import os
import re
import resource
import sys
import time

from msif.core.extras import need
from msif.core.files import write_json
from msif.study.paths import results, root, scratch

# Kernel and runner talk over a local port that other users of the machine could listen to.
ENCRYPTED = {"KernelManager": {"transport_encryption": "auto"}}

# The lists of params.yaml, and a section that the profiles in each have.
LISTS = {"profiles": "testbed", "validated": "retraining", "studied": "case_studies"}


def profiles():
    """The sections of params.yaml by name: profile -> stage -> parameters. (Lists there say which of them run.)"""
    params = need("yaml").safe_load((root() / "params.yaml").read_text())
    return {name: section for name, section in params.items() if not isinstance(section, list)}


def notebooks():
    """The names in notebooks/, in order, without .ipynb."""
    return sorted(p.stem for p in (root() / "notebooks").glob("*.ipynb"))


def known(value, what, names):
    """`value` if it is one of `names`; ValueError, saying what there is, if not."""
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(names) or 'none'}")
    return value


def parameters(name, profile):
    """One notebook's section of a profile, and the profile's own name; ValueError for anything unknown."""
    known(name, "notebook", notebooks())
    stages = profiles()[known(profile, "profile", profiles())] or {}
    stage = known(
        name.split("_", 1)[-1], f"section of the profile {profile!r} in params.yaml:", stages
    )
    declared = need("papermill").inspect_notebook(str(root() / "notebooks" / f"{name}.ipynb"))
    for key in (chosen := {**(stages[stage] or {}), "profile": profile}):
        known(key, f"parameter of {name} (params.yaml, {profile}.{stage}):", declared)
    return chosen


def without_clock(nb):
    """Drop times, progress bars, Python's version and papermill's random cell id: equal runs, equal bytes."""
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

    Raises ValueError before anything runs for a bad name; when a cell fails, papermill's error with a note of
    where the executed copy and its traceback are kept.
    """
    given, source = parameters(name, profile), root() / "notebooks" / f"{name}.ipynb"
    draft, out = scratch("executed", profile, f"{name}.ipynb"), results(profile, f"{name}.ipynb")
    # The study's models are too small to share among threads: one is as fast, is not slowed by other work on the machine,
    # and gives the same numbers whatever the number of cores. For larger models on a CPU, set the variable yourself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    try:
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


def peak_memory():
    """The largest resident size, in MB (2**20 bytes), of a finished child process: the notebook's kernel.

    A child starts as a copy of its parent, so that this is never less than this process's own 100 MB or so.
    """
    units = (
        2**20 if sys.platform == "darwin" else 2**10
    )  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / units


def record(profile, name, seconds, megabytes):
    """Set one notebook's entry in results/<profile>/timings.json, keeping the others'."""
    path = results(profile, "timings.json")
    found = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {"seconds": round(seconds, 1), "peak_mb": round(megabytes)}
    write_json(path, found, sort_keys=True)


def timings(*chosen):
    """A table of what each notebook's last run took, for the profiles named, or all that have run."""
    lines = [f"{'profile':<10} {'stage':<24} {'seconds':>9} {'peak MB':>9}"]
    for profile in chosen or profiles():
        path = results(known(profile, "profile", profiles()), "timings.json")
        for name, cost in sorted(json.loads(path.read_text()).items()) if path.exists() else ():
            lines.append(
                f"{profile:<10} {name:<24} {cost['seconds']:>9.1f} {cost['peak_mb']:>9.0f}"
            )
    return "\n".join(lines) if len(lines) > 1 else "nothing has run yet; start with: make study"


def enable(profile):
    """Add a profile to those lists of params.yaml for which it has a section; returns what to tell the user."""
    sections = profiles()[known(profile, "profile", profiles())] or {}
    return "\n".join(_listed(key, profile) for key, section in LISTS.items() if section in sections)


def _listed(key, profile):
    """Add a profile to one list of params.yaml, comments kept."""
    path = root() / "params.yaml"
    text = path.read_text()
    line = re.search(rf"^{key}: *\[(.*)\]", text, re.M)
    if line is None:
        raise ValueError(f"{path}: expected a line such as `{key}: [tiny]`; add {profile} by hand")
    enabled = [name.strip() for name in line[1].split(",") if name.strip()]
    if profile in enabled:
        return f"params.yaml: {key} has {profile} already"
    added = f"{key}: [{', '.join([*enabled, profile])}]"
    path.write_text(text.replace(line[0], added, 1))
    return f"params.yaml: {profile} was added; it now reads `{added}`"


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("notebook", nargs="?", help="name in notebooks/, without .ipynb")
    parser.add_argument("profile", nargs="?", help="section of params.yaml")
    parser.add_argument(
        "--timings", nargs="*", metavar="PROFILE", help="print what runs cost, and stop"
    )
    parser.add_argument(
        "--enable", metavar="PROFILE", help="add a profile to params.yaml, and stop"
    )
    args = parser.parse_args()
    if args.timings is None and args.enable is None and args.profile is None:
        parser.error("a notebook and a profile are needed, such as: 01_testbed tiny")
    try:
        if args.timings is not None:
            return print(timings(*args.timings))
        if args.enable:
            return print(enable(args.enable))
        parameters(args.notebook, args.profile)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"msif.study.pipeline.run: {error}\n")
    print(f"{args.notebook} for {args.profile}", flush=True)
    run(args.notebook, args.profile)
    print(timings(args.profile))


if __name__ == "__main__":
    main()
