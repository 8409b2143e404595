"""What a pair of one's own consists of, for DVC: ``python -m msif.study.pipeline.inputs mine``.

DVC knows the paths in a profile's section `your_models`, not what lies there. So this writes
results/<profile>/inputs.json, which the stage your_models depends on: a sha256 of each file or
folder, a hub id as it is, and nothing for the small pair. Models are large: the digest of a file
is kept in scratch/, and found there until its size or its time changes.
"""

import argparse
import json
import time
from pathlib import Path

from msif.core.files import sha256_of, sha256_of_file, write_json
from msif.study import params
from msif.study.paths import results, scratch
from msif.study.your_models import inputs

NAMES = (*inputs.EXPECTED, "questions")
SETTLED = 2 * 10**9  # ns after which a file's time tells a later write apart


def of(section):
    """{name: digest or hub id} of the sources that a section your_models names.

    Raises ValueError and FileNotFoundError as `your_models.inputs.given` does."""
    named = {name: section.get(name) for name in NAMES}
    if all(named[name] is None for name in inputs.EXPECTED):
        return {}
    inputs.given(**named)
    return {
        name: digest(path) if (path := inputs.local(name, source)) else source
        for name, source in named.items()
        if isinstance(source, str)
    }


def digest(path):
    """sha256 of a file's bytes, or of a folder's: names and bytes, hidden ones left out."""
    if path.is_file():
        return f"sha256:{_digest_of_file(path)}"
    files = sorted(x for x in path.rglob("*") if x.is_file() and not _hidden(x.relative_to(path)))
    return (
        f"sha256:{sha256_of([[x.relative_to(path).as_posix(), _digest_of_file(x)] for x in files])}"
    )


def _hidden(path):
    return any(part.startswith(".") for part in path.parts)


def _digest_of_file(path):
    """Read anew only where the file has changed since."""
    stat = path.stat()
    state = {"path": str(path.resolve()), "size": stat.st_size, "time": stat.st_mtime_ns}
    kept = scratch("inputs", f"{sha256_of(state['path'])[:16]}.json")
    if kept.exists() and (before := json.loads(kept.read_text("utf-8"))).items() >= state.items():
        return before["sha256"]
    found = sha256_of_file(path)
    if time.time_ns() - stat.st_mtime_ns > SETTLED:
        write_json(kept, {**state, "sha256": found})
    return found


def write(profile):
    """Write results/<profile>/inputs.json; returns its path."""
    path = Path(results(profile, "inputs.json"))
    write_json(path, of(params.section("08_your_models", profile)))
    return path


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="section of params.yaml")
    profile = parser.parse_args().profile
    try:
        write(profile)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"params.yaml, {profile}.your_models: {error}\n")


if __name__ == "__main__":
    main()
