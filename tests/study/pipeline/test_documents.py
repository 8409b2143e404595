"""README and docs/: short, and what they link and name is there.

`test_quoted_numbers.py` holds their numbers to the reports, `test_examples.py` runs what they say
one can run."""

import re
from pathlib import Path

import pytest
from support import ROOT
from support.pages import PAGES, README, TEXT

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def test_the_readme_is_read_in_one_go():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert not [x for x in lines if len(x) > 110 and not x.startswith("|")]


@every_page
def test_pages_are_short(page):
    assert page.name == "claims.md" or len(TEXT[page.name].splitlines()) <= 150


def links(page):
    """[(path, anchor or "")] of a page's links and pictures."""
    found = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", TEXT[page.name])
    return [((page.parent / to).resolve() if to else page, anchor) for to, anchor in found]


def anchors(path):
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in titles}


@every_page
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), (path.name, anchor)


def test_every_page_is_reached_from_the_readme():
    found, new = set(), {PAGES[0]}
    while new:
        found |= new
        new = {path for page in new for path, _ in links(page) if path in PAGES} - found
    assert found == set(PAGES)


def made_by_a_run(path):
    """Is it a page that `make study` makes: of a notebook that there is, or the overview?"""
    stem = Path(path).stem
    return stem in ("index", "explorer", "facts") or (ROOT / "notebooks" / f"{stem}.ipynb").exists()


@every_page
def test_every_path_it_names_exists(page):
    named = re.findall(
        r"[`\s]((?:reports|tests|msif|notebooks|benchmarks|docs)/[\w/.-]*\w/?)[`\s,;:]",
        TEXT[page.name],
    )
    missing = [x for x in named if not (ROOT / x).exists()]
    assert all(x.endswith(".html") and made_by_a_run(x) for x in missing), missing


@every_page
def test_every_module_it_names_exists(page):
    named = re.findall(r"`(msif(?:\.\w+)+)`", TEXT[page.name])
    front = {"load", "Model", "fit", "load_factors", "Stage", "Damping", "trace", "plan", "show"}
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists() or name[5:] in front, name
