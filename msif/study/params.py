"""params.yaml: its profiles and their sections, how other values differ from one, and the command
that would run them.
"""

import re
import shlex

from msif.core.extras import need
from msif.study.paths import root, stage_of

ABSENT = object()  # a value that one side does not have


def read():
    """All of params.yaml. A mapping that sections share by `<<` is one object in all of them."""
    return need("yaml").safe_load((root() / "params.yaml").read_text("utf-8"))


def profiles():
    """The sections of params.yaml by name: profile -> stage -> parameters."""
    return {name: section for name, section in read().items() if not isinstance(section, list)}


def known(value, what, names):
    """`value` if it is one of `names`; ValueError, saying what there is, if not."""
    if value not in list(names):
        raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(names) or 'none'}")
    return value


def section(notebook, profile):
    """One notebook's parameters in a profile; ValueError where params.yaml has none."""
    sections = profiles()[known(profile, "profile", profiles())] or {}
    what = f"section of the profile {profile!r} in params.yaml:"
    return sections[known(stage_of(notebook), what, sections)] or {}


def differences(values, other, at=()):
    """[(path, value, other's value)] wherever two trees of dicts differ, at their leaves.

    values, other: {name: JSON value}. A path is a tuple of keys; lists are leaves. Where one side
    lacks a key, its value is ABSENT."""
    found = []
    for key in {**other, **values}:
        value, theirs = values.get(key, ABSENT), other.get(key, ABSENT)
        if isinstance(value, dict) and isinstance(theirs, dict):
            found += differences(value, theirs, (*at, key))
        elif _plain(value) != _plain(theirs):
            found.append(((*at, key), value, theirs))
    return found


def shown(value, width=60):
    """A value in so many characters, cut in its middle."""
    text = "not there" if value is ABSENT else repr(value)
    return text if len(text) <= width else f"{text[: width - 15]} … {text[-12:]}"


def dotted(path):
    """A path as it is written: grid.alpha."""
    return ".".join(map(str, path))


def remedies(notebook, profile, differing):
    """What makes differing parameters last: sentences, the last one a command where there is one.

    differing: what `differences` gives, against the section of params.yaml."""
    stage, given = stage_of(notebook), read()
    runs = profile in given["profiles"]
    found = [
        f"edit {profile}.{stage} in params.yaml, then: make study"
        + f" PROFILE={profile}" * (not runs)
    ]
    if not runs or _reads_data(given[profile]):
        return found
    overrides = [_override(given, profile, stage, path, value) for path, value, _ in differing]
    if None in overrides:
        unset = [dotted(x[0]) for x, o in zip(differing, overrides) if o is None]
        return [f"{found[0]} (`dvc exp run -S` cannot set {', '.join(unset)})"]
    options = " ".join(f"-S {shlex.quote(x)}" for x in overrides)
    return [*found, f"or, beside the study: dvc exp run --temp {options} {stage}@{profile}"]


def _plain(value):
    """Lists in place of tuples, which JSON and YAML do not have."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _reads_data(tree):
    """Does a profile read data/, of which the copy that `--temp` runs in has nothing?"""
    if isinstance(tree, dict | list):
        return any(map(_reads_data, tree.values() if isinstance(tree, dict) else tree))
    return isinstance(tree, str) and tree.split("/")[0] == "data"


def _override(given, profile, stage, path, value):
    """`tiny.testbed.max_length=32` for `-S`; None for what it would not write as meant.

    It writes back what lies inside a mapping that profiles share, adds no key, and takes plain
    keys alone."""
    others = {id(x) for name, part in given.items() if name != profile for x in _mappings(part)}
    node = given[profile]
    for key in (stage, *path):
        node = node.get(key, ABSENT)
        if node is ABSENT or id(node) in others or not re.fullmatch(r"[A-Za-z_]\w*", str(key)):
            return None
    written = _written(value)
    return None if written is None else f"{dotted((profile, stage, *path))}={written}"


def _mappings(tree):
    if isinstance(tree, dict):
        yield tree
        for part in tree.values():
            yield from _mappings(part)


def _written(value):
    """A value in the grammar of `-S`, or None where that has no sure way to write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):  # 1e-05 would be written so, and read as text
        return repr(value) if re.fullmatch(r"-?\d+\.\d+(e[-+]\d+)?", repr(value)) else None
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./ -]*", value)
        return f'"{value}"' if plain else None
    if isinstance(value, list | tuple):
        parts = [_written(part) for part in value]
        return None if None in parts else f"[{', '.join(parts)}]"
    if isinstance(value, dict):
        parts = {str(key): _written(part) for key, part in value.items()}
        if None in parts.values() or not all(re.fullmatch(r"[A-Za-z_]\w*", x) for x in parts):
            return None
        return "{" + ", ".join(f"{key}: {part}" for key, part in parts.items()) + "}"
    return None
