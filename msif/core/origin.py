"""Is there anything at the place that a model is said to be? Asked before a loader waits for it."""

import re
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError

_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?").fullmatch
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def look_for(source: str | Path, revision: str | None, files: str) -> None:
    """OSError, at once, where there can be nothing at `source`: no folder of that name, and no hub
    id; or one that was not downloaded, with the hub out of reach. files: what a folder should
    hold."""
    name, path = str(source), Path(source)
    if path.exists():
        return
    said = f"nothing could be loaded from {name!r}: there is no such folder"
    beside = path.parent != Path(".") and path.parent.is_dir()
    if isinstance(source, Path) or beside or not _ID(name):
        raise OSError(
            f"{said}; expected a hub id, such as 'EleutherAI/pythia-70m', or a local folder with "
            f"{files}"
        )
    if any(isinstance(hub.try_to_load_from_cache(name, x, revision=revision), str) for x in _FILES):
        return
    if hub.constants.HF_HUB_OFFLINE:
        raise OSError(
            f"{said}, and of a hub id of that name nothing is downloaded while HF_HUB_OFFLINE is "
            f"set: expected a local folder with {files}"
        )
    try:  # once: the loaders try for half a minute
        url = hub.hf_hub_url(name, _FILES[0], revision=revision)
        hub.get_hf_file_metadata(url, timeout=10)
    except (HfHubHTTPError, hub.errors.EntryNotFoundError):
        return  # the hub answers: what it says, the loader says
    except Exception as error:
        raise OSError(
            f"{said}, and the hub cannot be reached to look for a hub id of that name ({error}): "
            f"expected a local folder with {files}"
        ) from error
