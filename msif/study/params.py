"""params.yaml: its profiles and their sections, how other values differ from one, and the command
that would run them.
"""

import copy
import functools
import re
import shlex

from msif.core.extras import need
from msif.study.paths import root, stage_of

ABSENT = object()  # a value that one side does not have
TAKEN = ("by-hand", "benchmarks")  # folders of results/ and reports/ that are no profile's


def load(name):
    """The mapping in a YAML file of the study, such as "dvc.yaml"; {} for an empty one.

    Raises ValueError, naming file and line, for what is no YAML, no mapping, or has a key twice."""
    return copy.deepcopy(_parsed(name, (root() / name).read_bytes()))


@functools.cache
def _parsed(name, content):
    """The mapping in these bytes: a study asks for params.yaml hundreds of times."""
    yaml = need("yaml")
    try:
        text = content.decode("utf-8-sig")
        found = yaml.load(text, Loader=_loader())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: this is not UTF-8, save it as such") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{name}, {_at(error, text)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict | None):
        raise ValueError(f"{name} holds {shown(found)}: expected a mapping, name: value")
    return found or {}


@functools.cache
def _loader():
    """PyYAML's safe loader, but that a key which stands twice in a mapping is an error."""
    yaml = need("yaml")

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node, seen = super().compose_mapping_node(anchor), {}
            for key, _ in node.value:
                if key.value in seen and isinstance(key, yaml.ScalarNode):
                    problem = f"{key.value!r} stands twice here: remove one of the two"
                    mark = seen[key.value].start_mark
                    raise yaml.MarkedYAMLError("the first stands", mark, problem, key.start_mark)
                if isinstance(key, yaml.ScalarNode):
                    seen[key.value] = key
            return node

    return Loader


def _at(error, text):
    """Where a YAML error is and what it is, with the line itself."""
    mark, lines = error.problem_mark or error.context_mark, text.splitlines() or [""]
    line = lines[min(mark.line, len(lines) - 1)]
    found = f"line {mark.line + 1}: {error.problem or error.context}, in {shown(line.strip())}"
    if error.context_mark and error.context_mark.line != mark.line:
        found += f" ({error.context} in line {error.context_mark.line + 1})"
    return found


def read():
    """All of params.yaml. A mapping that sections share by `<<` is one object in all of them.

    Raises ValueError for what `load` refuses, and where `profiles` is no list of names."""
    found = load("params.yaml")
    runs = found.get("profiles")
    if not isinstance(runs, list) or not all(isinstance(x, str) for x in runs):
        raise ValueError(
            f"params.yaml: profiles is {shown(runs)}; expected a list of those that run, "
            f"such as [tiny]"
        )
    if twice := {name for name in runs if runs.count(name) > 1}:
        raise ValueError(f"params.yaml: profiles has {', '.join(sorted(twice))} twice")
    return found


def profiles():
    """The sections of params.yaml by name: profile -> stage -> parameters.

    Raises ValueError for a name that is no folder's, as results go to results/<name>/, and for a
    profile or a section of it that is empty or no mapping."""
    found = {name: x for name, x in read().items() if not isinstance(x, list)}
    for name, sections in found.items():
        text = isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name)
        if not text or name in TAKEN:
            raise ValueError(
                f"params.yaml: a profile cannot be called {name!r}, its results go to a folder of "
                f"this name: expected letters, digits, _ and -, and none of {', '.join(TAKEN)}"
            )
        _mapping(name, sections, "notebooks' sections")
        for stage, section in sections.items():
            _mapping(f"{name}.{stage}", section, "parameters")
    return found


def _mapping(where, value, what):
    if not isinstance(value, dict):
        raise ValueError(
            f"params.yaml: {where} is {'empty' if value is None else shown(value)}; expected "
            f"{what}, or {{}} for none, or the line left out"
        )


def known(value, what, names):
    """`value` if it is one of `names`; ValueError, saying what there is, if not."""
    if value not in list(names):
        raise ValueError(f"unknown {what} {value!r}; there are: {', '.join(names) or 'none'}")
    return value


def section(notebook, profile):
    """One notebook's parameters in a profile; ValueError where params.yaml has none."""
    sections = profiles()[known(profile, "profile", profiles())]
    what = f"section of the profile {profile!r} in params.yaml:"
    return sections[known(stage_of(notebook), what, sections)]


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
