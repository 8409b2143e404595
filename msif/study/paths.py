"""Where things live, from any working directory inside the study."""

from pathlib import Path


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


def results(profile, *parts):
    """results/<profile>/<parts>, its folder made: what DVC keeps (models, factors, scores)."""
    return _inside("results", profile, *parts)


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


def _inside(*parts):
    path = root().joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
