"""Third-party inputs, pinned: what the first run has read, later runs must find again, or stop.

`folder`/digests.json has {group: {name: digest}}: sha256 of local files, the commit of what comes
from the hub by id. The first run writes a group, later ones accept nothing else; to change an input
on purpose, remove its group.
"""

import json
import random
from functools import cache
from pathlib import Path

from msif.core.data import FORMATS
from msif.core.extras import need
from msif.core.files import parsed_line, sha256_of_file, write_json
from msif.study.paths import scratch

SHUFFLED = 10_000  # rows of a streamed data set among which each next one is drawn


def enforced(folder, group, found):
    """`found` ({name: digest}), once it is what the first run has found.

    It is recorded in folder/digests.json the first time, and from then on the only one that is
    accepted. Raises ValueError naming the first file that differs, is missing or new, what was
    expected and what to do.
    """
    recorded, path = _recorded(folder), Path(folder) / "digests.json"
    if group not in recorded:
        write_json(path, recorded | {group: found})
        return found
    for name in sorted(recorded[group].keys() | found.keys()):
        expected, here = recorded[group].get(name, "no such file"), found.get(name, "no such file")
        if expected != here:
            raise ValueError(
                f"{group}: {name} has changed since the first run. "
                f"Expected {expected}, found {here}. Put the first one back; or, if the change is "
                f"meant, remove {group!r} from {path}: results until then are of other data"
            )
    return found


def pinned_files(folder, group, patterns, layout):
    """{name: sha256} of the files of `folder` that match `patterns`, by pattern and name.

    They are checked as `group` (`enforced`). layout: text on what belongs there, for the
    FileNotFoundError where a pattern finds nothing.
    """
    folder = Path(folder)
    found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
    if missing := [pattern for pattern, matching in found.items() if not matching]:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}. Put there, as files or links:\n{layout}"
        )
    files = [path for matching in found.values() for path in matching]
    return enforced(folder, group, _digests(folder, files))


def pinned_rows(folder, finetuning):
    """{"commit"} of a hub data set, or {name: sha256} of a file or folder, checked likewise.

    finetuning: where rows (of fine-tuning, say) come from, {"source": hub id, file or folder,
    "revision": of a hub id, by default main}. Raises FileNotFoundError for a source that is none of
    these, OSError for a hub id where the hub does not answer and nothing of it was downloaded.
    """
    return _pinned(folder, finetuning["source"], finetuning.get("revision"), "dataset", "**/*.*")


def pinned_models(folder, models):
    """`models` ({name: {"source", "revision", …}}) with the commit of each hub id as its revision.

    The files of a local one are checked against digests.json, and its revision is None. One that
    was made here, in scratch/, bears the name of all that it was made of and is not recorded: made
    again, it may differ in its last digits. Raises as `pinned_rows` and `enforced` do.
    """
    found = {
        name: _pinned(folder, at["source"], at.get("revision"), "model", "*.*")
        for name, at in models.items()
    }
    return {name: at | {"revision": found[name].get("commit")} for name, at in models.items()}


def sampled_rows(folder, limit, seed=0, *, source, revision=None, files=None):
    """At most `limit` random rows (dicts) of a data set, which is checked as by `pinned_rows`.

    source: a .jsonl file (every row is as likely as any other), or a folder or hub data set, which
    is streamed and shuffled over 10,000 rows; files: of these, a pattern such as "en/*.jsonl".
    """
    commit = pinned_rows(folder, {"source": source, "revision": revision}).get("commit")
    if Path(source).suffix == ".jsonl":
        with open(source, encoding="utf-8") as lines:
            kept = reservoir(enumerate(lines, 1), limit, random.Random(seed))
        return [parsed_line(source, *found) for found in kept]
    rows = need("datasets").load_dataset(
        str(source), data_files=files, revision=commit, split="train", streaming=True
    )
    return rows.shuffle(seed=seed, buffer_size=SHUFFLED).take(limit)


def check_columns(source, row, names):
    """Raises ValueError naming the first of `names` that a row (a dict) of `source` lacks."""
    if missing := [name for name in names if name not in row]:
        raise ValueError(
            f"{source} has no column {missing[0]!r}; its columns are {', '.join(sorted(row))}"
        )


def reservoir(items, size, rng):
    """At most `size` of a stream of items, each as likely as any other, in the memory of those."""
    kept = []
    for n, item in enumerate(items):
        if (place := n if n < size else rng.randrange(n + 1)) < size:
            kept[place : place + 1] = [item]
    return kept


def is_hub_id(source):
    """Is it "owner/name" and no path? A name may hold a dot, as pythia-2.8b does."""
    path = Path(source)
    local = path.exists() or path.is_absolute() or path.suffix in FORMATS
    return not local and str(source).count("/") == 1


def _pinned(folder, source, revision, kind, pattern):
    path = Path(source)
    if path.exists():
        read = [path] if path.is_file() else [p for p in sorted(path.glob(pattern)) if p.is_file()]
        base = path.parent if path.is_file() else path
        if path.resolve().is_relative_to(scratch().resolve()):
            return _digests(base, read)
        return enforced(folder, str(source), _digests(base, read))
    if not is_hub_id(source):
        raise FileNotFoundError(
            f"{source} does not exist; expected a file, a folder or the id of a {kind} on the hub"
        )
    revision = revision or "main"
    group = f"{source} at {revision}"
    if known := _recorded(folder).get(group):
        return known
    return enforced(folder, group, {"commit": _commit(source, revision, kind)})


def _commit(source, revision, kind):
    """The commit behind a revision, asked of the hub, or of what was downloaded from it before."""
    hub = need("huggingface_hub")
    try:
        return hub.HfApi().repo_info(source, repo_type=kind, revision=revision).sha
    except Exception as error:  # offline, in any of many ways: a download may still be there
        file = "config.json" if kind == "model" else "README.md"
        cached = hub.try_to_load_from_cache(source, file, revision=revision, repo_type=kind)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise OSError(
            f"the hub does not say which commit of the {kind} {source} revision {revision} is, "
            f"and it was not downloaded before. Connect, or give a folder in its place. "
            f"The cause: {error}"
        ) from error


def _recorded(folder):
    path = Path(folder) / "digests.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _digests(base, paths):
    """{name under `base`: sha256} of files, in their order."""
    return {p.relative_to(base).as_posix(): _sha256(p) for p in paths}


def _sha256(path):
    return _sha256_of(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _sha256_of(path, size, changed):
    """Size and time of change: a file is read again when it was written again."""
    return sha256_of_file(path)
