"""Profiles: the sections of params.yaml, and which of them run which stage.

params.yaml has one list, `profiles`: those that run. A profile runs the stages that it has a
section for; DVC cannot work that out, so dvc.yaml holds the lists that follow (`runs`), and
`follow` writes them there.
"""

import re

from msif.core.extras import need
from msif.study.params import known, load, profiles, read, section
from msif.study.paths import notebooks, root, stage_of
from msif.study.pipeline.kinds import check
from msif.study.pipeline.sources import defaults


def enabled():
    """The profiles that run, as params.yaml lists them; ValueError for one without a section."""
    return [known(name, "profile", profiles()) for name in read()["profiles"]]


def parameters(notebook, profile):
    """One notebook's section of a profile, and the profile's name.

    ValueError where unknown, and for values of another kind than the notebook takes."""
    known(notebook, "notebook", notebooks())
    chosen = {**section(notebook, profile), "profile": profile}
    source = root() / "notebooks" / f"{notebook}.ipynb"
    declared = need("papermill").inspect_notebook(str(source))
    for key in chosen:
        known(
            key, f"parameter of {notebook} (params.yaml, {profile}.{stage_of(notebook)}):", declared
        )
    check(chosen, defaults(notebook), profile, stage_of(notebook))
    return chosen


def check_all(chosen):
    """Raise ValueError, as `parameters` does, for any notebook that these profiles run."""
    for name in notebooks():
        for profile in chosen:
            if profile in runs().get(stage_of(name), []):
                parameters(name, profile)


def enable(profile):
    """Add a profile to those that run; returns what to tell the user."""
    known(profile, "profile", profiles())
    if profile in enabled():
        return f"params.yaml: profiles has {profile} already"
    line = _set_list("params.yaml", "profiles", [*enabled(), profile])
    follow()
    return f"params.yaml: {profile} was added; it now reads `{line}`"


def runs():
    """{stage: the enabled profiles that have a section for it}, in the order of notebooks; less
    those that lack its data, see `lacking`."""
    sections = profiles()
    return {
        stage: [name for name in enabled() if stage in sections[name] and not lacking(name, stage)]
        for stage in map(stage_of, notebooks())
    }


def lacking(profile, stage):
    """What is not in data/ that a pair of models of this stage is traced on, as a list of paths.

    The other stages of its profile do without; of one that has no other, nothing is said here, and
    its notebook refuses to begin."""
    stages = profiles()[profile]
    pair = (stages.get(stage) or {}).get("pair") or {}
    named = [x.get("source", "") for x in (pair.get("rows") or {}, *pair.get("corpora", []))]
    absent = [x for x in named if x.startswith("data/") and not (root() / x).exists()]
    return absent if len(stages) > 1 else []


def follow():
    """Write `runs` into dvc.yaml where its lists say otherwise; the stages whose list changed."""
    there = next(x["runs"] for x in load("dvc.yaml")["vars"] if "runs" in x)
    changed = [stage for stage, names in runs().items() if there.get(stage, []) != names]
    for stage in changed:
        _set_list("dvc.yaml", stage, runs()[stage])
    return changed


def _set_list(name, key, values):
    """Rewrite the line `key: [...]` of a YAML file, all else kept; returns the new line."""
    path = root() / name
    text = path.read_text("utf-8")
    line = re.search(rf"^( *){key}: *\[(.*)\]", text, re.M)
    if line is None:
        raise ValueError(f"{path}: expected a line such as `{key}: [tiny]`; write it by hand")
    new = f"{line[1]}{key}: [{', '.join(values)}]"
    path.write_text(text.replace(line[0], new, 1), "utf-8")
    return new.strip()
