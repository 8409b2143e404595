"""The first cell of every notebook: who runs it, where it writes, how its parameters differ."""

import os

from msif.study import params, paths

PIPELINE = "MSIF_PIPELINE"  # 1 in the kernels that `pipeline.run` starts


def begin(notebook, namespace):
    """Settle where a notebook reads and writes; where a person runs it, print that.

    notebook: its name, such as "01_testbed". namespace: its globals(), with its parameters.
    A notebook that the pipeline runs prints nothing, and writes to results/<profile>/. By hand it
    writes to `paths.by_hand(profile, notebook)`, reads what other notebooks have finished, and
    lists the parameters that differ from its section of params.yaml.
    Raises ValueError for an unknown profile, or one without such a section; FileNotFoundError,
    with the remedy, for what another notebook must make first."""
    profile, by_hand = namespace["profile"], os.environ.get(PIPELINE) != "1"
    section = params.section(notebook, profile)
    paths.begin(paths.Running(notebook, by_hand))
    needed = [paths.finished(profile, maker) for maker in _makers(notebook)]
    if by_hand:
        given = {name: namespace[name] for name in section if name in namespace}
        print(_told(notebook, profile, needed, params.differences(given, section)))


def _makers(notebook):
    """The notebooks whose results this one needs, by the dependencies of its stage in dvc.yaml."""
    stage = (
        params.load("dvc.yaml")
        .get("stages", {})
        .get(paths.stage_of(notebook), {"do": {"deps": []}})
    )
    there = {f"results/${{item}}/{paths.stage_of(name)}/": name for name in paths.notebooks()}
    return [there[x] for x in stage["do"]["deps"] if x in there]


def _told(notebook, profile, needed, differing):
    """What a person who runs a notebook is told."""
    named = f"params.yaml, {profile}.{paths.stage_of(notebook)}"
    own = _from_root(paths.by_hand(profile, notebook))
    reads = ", ".join(map(_from_root, needed)) or "nothing that another notebook made"
    lines = [
        f"Run by hand: results/{profile} and reports/{profile} stay as they are.",
        f"  writes to   {own}; what JupyterLab saves has its outputs there, too",
        f"  reads       {reads}",
        f"  parameters  {'differ from' if differing else 'those of'} {named}",
    ]
    if differing:
        shown = [(params.dotted(x), *map(params.shown, pair)) for x, *pair in differing]
        name, value = (max(len(row[n]) for row in shown) for n in (0, 1))
        lines += [f"    {a:{name}}  {b:{value}}  params.yaml: {c}" for a, b, c in shown]
        first, *more = params.remedies(notebook, profile, differing)
        lines += [f"  to keep     {first}", *(f"              {line}" for line in more)]
    return "\n".join(lines)


def _from_root(path):
    return path.relative_to(paths.root()).as_posix()
