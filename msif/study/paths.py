"""Where things live, from any working directory inside the study."""

from pathlib import Path


def root():
    """The folder that holds dvc.yaml, found by walking up from here; FileNotFoundError outside of a study."""
    here = Path.cwd()
    found = next((p for p in (here, *here.parents) if (p / "dvc.yaml").is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no dvc.yaml in {here} or above it: run this inside a checkout of the study"
        )
    return found


def results(profile, *parts):
    """results/<profile>/<parts>, with its folder made: what DVC keeps (models, factors, scores)."""
    return _inside("results", profile, *parts)


def reports(profile, *parts):
    """reports/<profile>/<parts>, with its folder made: what git keeps (executed notebooks, HTML, metrics)."""
    return _inside("reports", profile, *parts)


def scratch(*parts):
    """scratch/<parts>, with its folder made: checkpoints and whatever may be deleted at any time."""
    return _inside("scratch", *parts)


def from_root(settings, name):
    """`settings` with the folder at `name` made absolute if it exists in the study; a hub id is left alone."""
    path = root() / settings.get(name, "")
    return settings | {name: str(path)} if name in settings and path.exists() else settings


def _inside(*parts):
    path = root().joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
