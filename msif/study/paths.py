"""Where things live, from any working directory inside the study.

A notebook that has begun (`notebook.begin`) owns results/<profile>/ but for what other notebooks
make there, which must be finished. By hand, what it owns lies in results/by-hand/ instead.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePath


@dataclass(frozen=True)
class Running:
    """The notebook that runs in this process: its name, and whether a person runs it."""

    notebook: str
    by_hand: bool


_running = None


def begin(running):
    """From here on, `results` are those of this `Running`; None: of no notebook."""
    global _running
    _running = running


def root():
    """The folder that holds dvc.yaml, found by walking up from here.

    Raises FileNotFoundError outside of a study."""
    here = Path.cwd()
    found = next((p for p in (here, *here.parents) if (p / "dvc.yaml").is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no dvc.yaml in {here} or above it: run this inside a checkout of the study"
        )
    return found


def notebooks(folder=None):
    """The notebooks of the study in a folder (by default notebooks/): 01_testbed, …, in order.

    Copies (01_testbed-Copy1) and notebooks of other names are their owner's."""
    names = (path.stem for path in (folder or root() / "notebooks").glob("*.ipynb"))
    return sorted(name for name in names if re.fullmatch(r"\d\d_\w+", name))


def stage_of(notebook):
    """The stage that runs a notebook, and its part of results/: "01_testbed" -> "testbed"."""
    return notebook.split("_", 1)[-1]


def results(profile, *parts):
    """results/<profile>/<parts>, its folder made: what DVC keeps (models, factors, scores).

    In a notebook that has begun: what another notebook makes is looked up, see `finished`; all
    else is the notebook's own, and lies in `by_hand(profile, notebook)` if a person runs it.
    Raises RuntimeError in a notebook that has not begun: it would overwrite the pipeline's."""
    if _running is None:
        if _in_notebook():
            raise RuntimeError("run the first cells: notebook.begin says where this one writes")
        return _inside("results", profile, *parts)
    makers = {stage_of(name): name for name in notebooks() if name != _running.notebook}
    if parts and parts[0] in makers:
        return finished(profile, makers[parts[0]], *parts[1:])
    if _running.by_hand:
        return _inside("results", "by-hand", profile, _running.notebook, *parts)
    return _inside("results", profile, *parts)


def finished(profile, maker, *parts):
    """What the notebook `maker` has made: results/<profile>/<its stage>/<parts>.

    By hand, where the pipeline has made nothing, what a person's run of `maker` has made.
    Raises FileNotFoundError, with the remedy, for what is not there."""
    stage = stage_of(maker)
    kept = _below("results", profile, stage)
    own = by_hand(profile, maker) / stage
    folder = own if _by_hand() and own.exists() and not kept.exists() else kept
    path = folder.joinpath(*parts)
    if path.exists():
        return path
    what = path.relative_to(root())
    remedy = f"run `make study PROFILE={profile}`, or that notebook alone: "
    remedy += f"`python -m msif.study.pipeline.run {maker} {profile}`"
    if _by_hand():
        remedy += f", or notebooks/{maker}.ipynb by hand"
    if folder.exists():
        remedy = (
            f"its parameters are {profile}.{stage} in params.yaml: change them there, and {remedy}"
        )
    raise FileNotFoundError(f"{what} is not there: notebook {maker} makes it; {remedy}")


def by_hand(profile, notebook, top=None):
    """results/by-hand/<profile>/<notebook>: where a notebook that a person runs writes.

    top: the study's folder, where the working directory may be outside of it."""
    return _below("results", "by-hand", profile, notebook, top=top)


def reports(profile, *parts):
    """results/<profile>/reports/<parts>, its folder made: numbers and figures of reports."""
    return results(profile, "reports", *parts)


def published(*parts):
    """reports/<parts>, its folder made: what readers open, copied there by `pipeline.report`."""
    return _inside("reports", *parts)


def scratch(*parts):
    """scratch/<parts>, its folder made: checkpoints, and whatever may be deleted at any time."""
    return _inside("scratch", *parts)


def from_root(settings, name):
    """`settings` with the folder at `name` made absolute if the study has it; a hub id stays."""
    path = root() / settings.get(name, "")
    return settings | {name: str(path)} if name in settings and path.exists() else settings


def _in_notebook():
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _by_hand():
    return _running is not None and _running.by_hand


def _below(*parts, top=None):
    """A path of the study; ValueError for one that would lead out of its folder."""
    named = PurePath(*map(str, parts))
    if len(named.parts) < len(parts) or ".." in named.parts or named.is_absolute():
        raise ValueError(
            f"{named.as_posix()} leads elsewhere than below {parts[0]}/: profiles, notebooks and "
            f"files are named by letters, digits, _ and -"
        )
    return (top or root()) / named


def _inside(*parts):
    path = _below(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
