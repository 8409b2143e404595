"""The whole study: ``python -m msif.study.pipeline.study [PROFILE]``, which `make study` calls.

Chains of stages that do not depend on each other run side by side, each by a `dvc repro` of its
own, as many at once as there are cores. dvc.lock says which bytes a run gave, and they differ
between processors in their last digits; so it is put back as it was, unless --record is given.
DVC's cache knows what has run all the same.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from msif.core.files import write_text
from msif.study.params import load
from msif.study.paths import published, root, scratch
from msif.study.pipeline.profiles import (
    check_all,
    enable,
    enabled,
    follow,
    known,
    lacking,
    notebooks,
    profiles,
    runs,
)
from msif.study.pipeline.report import publish
from msif.study.pipeline.sources import edited

BUSY = "Unable to acquire lock"  # another `dvc repro` is between two stages
RETRIES = 200
LOOKING = "inputs@"  # a stage that only looks whether a pair of one's own has changed, each time


class StageError(RuntimeError):
    """A stage failed; the message has the end of what it printed."""


def chains():
    """Lists of stages, in the order of notebooks, none of which depends on another list's."""
    stages = load("dvc.yaml")["stages"]
    found = []
    for stage in runs():
        needed = {
            name for name in runs() if f"results/${{item}}/{name}/" in stages[stage]["do"]["deps"]
        }
        before = [chain for chain in found if needed & set(chain)]
        found = [chain for chain in found if chain not in before]
        found.append([*(name for chain in before for name in chain), stage])
    return found


def reproduce(chosen, record=False):
    """Run what has changed of these profiles, and publish their reports; the stages that ran.

    record: leave dvc.lock as the runs write it. Raises `StageError` for a stage that fails."""
    # The longest chain first, then the later notebooks, which take longer: no core idles then.
    ordered = sorted(reversed(chains()), key=len, reverse=True)
    targets = [
        [f"{stage}@{profile}" for stage in chain if profile in runs()[stage]]
        for profile in chosen
        for chain in ordered
    ]
    start = time.monotonic()
    with _lock_put_back(record), ThreadPoolExecutor(_cores()) as pool:
        ran = [pool.submit(_repro, names, start) for names in targets if names]
        done, waiting = wait(ran, return_when=FIRST_EXCEPTION)
        if failed := next((x for x in done if x.exception()), None):
            print("a stage failed; the others that run come to their end ...", flush=True)
            for x in waiting:
                x.cancel()
            raise failed.exception()
        found = [stage for chain in ran for stage in chain.result()]
        found += _repro([f"report@{profile}" for profile in chosen], start)
    for profile in chosen:
        publish(profile)
    return found


def left_out(chosen):
    """A line for each stage of these profiles that does not run, as data is not there for it."""
    return [
        f"{profile}: {stage} is left out; it needs {' and '.join(absent)}, see docs/profiles.md"
        for profile in chosen
        for stage in runs()
        if stage in profiles()[profile] and (absent := lacking(profile, stage))
    ]


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextmanager
def _lock_put_back(record):
    path = root() / "dvc.lock"
    before = path.read_text("utf-8") if path.exists() else None
    try:
        yield
    finally:
        if not record and before is not None:
            write_text(path, before)
        elif not record:
            path.unlink(missing_ok=True)


def _repro(targets, start):
    """`dvc repro` of targets, again while another one holds DVC's lock; the stages that ran."""
    log, ran = scratch("logs", f"{targets[0]}.log"), []
    for _ in range(RETRIES):
        code = _logged([sys.executable, "-m", "dvc", "repro", *targets], log, start, ran)
        printed = log.read_text("utf-8", errors="replace")
        if code == 0:
            return ran
        if BUSY not in "".join(printed.splitlines()[-1:]):  # nothing, where it was killed
            end = "\n".join(printed[-4000:].splitlines()[-25:])
            raise StageError(f"{' '.join(targets)} failed:\n{end}\n(all of it: {log})")
        time.sleep(1)
    raise StageError(f"{' '.join(targets)}: DVC's lock was busy {RETRIES} times; is a run stuck?")


def _logged(command, log, start, ran):
    """Run a command with its output in a file; a line here for each stage that starts."""
    with log.open("w", encoding="utf-8") as file:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        child = subprocess.Popen(command, cwd=root(), errors="replace", **options)
        for line in child.stdout:
            file.write(line)
            if line.startswith("Running stage '") and not line.split("'")[1].startswith(LOOKING):
                ran.append(line.split("'")[1])
                print(f"{time.monotonic() - start:5.0f} s  {ran[-1]}", flush=True)
    return child.wait()


def main():
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("profile", nargs="?", help="enable this profile and run it alone")
    parser.add_argument("--record", action="store_true", help="leave dvc.lock as the run writes it")
    given = parser.parse_args()
    try:
        if given.profile:
            known(given.profile, "profile", profiles())
            print(enable(given.profile))
        follow()
        chosen = [given.profile] if given.profile else enabled()
        for line in [x for name in notebooks() for x in edited(name)] + left_out(chosen):
            print(line)
        check_all(chosen)
        ran = reproduce(chosen, given.record)
    except (ValueError, FileNotFoundError, StageError) as error:
        parser.exit(2, f"make study: {error}\n")
    print(f"\nThe study is up to date ({len(ran)} stages ran). Open in a browser:")
    pages = [published("index.html")]
    pages += [page for name in chosen for page in sorted(published(name).glob("*.html"))]
    print("\n".join(f"  {page.relative_to(root())}" for page in pages))


if __name__ == "__main__":
    main()
