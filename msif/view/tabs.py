"""The explorer's page with a tab for each stage of training, for the same queries: documents of
pre-training, rows of fine-tuning, pairs of preferences.

It is `view.page`'s, with a few lines more in its style, markup and script (tabs.html)."""

import re
from pathlib import Path

from msif.core.files import write_text
from msif.view.page import content, filled

FRAGMENTS = Path(__file__).with_name("tabs.html")


def page(title, tabs, about=""):
    """The HTML page, as a string.

    tabs: {name: {"documents", "queries", "methods"}}, each as `view.page.page` has them, and
    perhaps "withhold_texts", "trained_on" and a "note", a line of text. Raises ValueError as that
    does, for fewer than two tabs, and for tabs whose queries are not the same.
    """
    if len(tabs) < 2:
        raise ValueError(f"{len(tabs)} tabs: expected at least two, or a page without (view.page)")
    methods, found, asked = {}, [], None
    for name, tab in tabs.items():
        queries = list(tab["queries"])
        said = [(q.id, list(q.prompt_words), list(q.answer_words)) for q in queries]
        if asked not in (None, said):
            raise ValueError(
                f"the queries of {name!r} are not those of {next(iter(tabs))!r}: expected the same "
                f"ones, in the same order"
            )
        asked = said
        options = tab.get("withhold_texts", False), tab.get("trained_on")
        shown = content(tab["documents"], queries, tab["methods"], *options)
        methods |= {x: y for x, y in tab["methods"].items() if x not in methods}
        found.append({"name": name, "note": tab.get("note", ""), **shown})
    data = {"title": title, "about": about, "methods": methods, "tabs": found}
    return filled(data, _fragments())


def write(path, title, tabs, about=""):
    """Write `page(…)` to a file, whole or not at all; returns its path."""
    path, html = Path(path), page(title, tabs, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def _fragments():
    """{slot of the template: what stands there}."""
    _, *parts = re.split(r"<!-- (\w+) -->\n", FRAGMENTS.read_text("utf-8"))
    found = {name: f"\n{text}" for name, text in zip(parts[::2], parts[1::2])}
    return found | {"script": found["script"].lstrip("\n")}
