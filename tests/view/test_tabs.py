"""Pages with a tab a stage: one-stage pages have nothing of it, and nothing is shown of other
queries."""

import re
from dataclasses import replace

import pytest
from support.explorer_demo import DOCUMENTS, HOSTILE, queries
from support.explorer_page import data_of
from support.explorer_tabs import METHODS, tabs_of

from msif.study.pipeline.report import elsewhere
from msif.view import page, tabs


def test_a_page_of_one_stage_has_nothing_of_tabs():
    html = page.page("Demo", DOCUMENTS, queries(), METHODS)
    assert "tablist" not in html and "TABS" not in html and "{{" not in html
    template = re.sub(r"\{\{tab:\w+\}\}", "", page.TEMPLATE.read_text("utf-8"))
    for code in ("style", "script"):
        [whole] = re.findall(rf"<{code}>(.*?)</{code}>", template, re.DOTALL)
        assert whole in html


def test_a_tab_has_what_a_page_of_its_own_has():
    given = tabs_of()
    html = tabs.page("Demo", given, HOSTILE)
    found = data_of(html)
    assert found["about"] == HOSTILE and found["methods"] == METHODS | {"fourth": "of rows"}
    assert [x["name"] for x in found["tabs"]] == list(given)
    for one, tab in zip(found["tabs"], given.values()):
        alone = {x: y for x, y in tab.items() if x != "note"}
        expected = data_of(page.page("Demo", **alone))
        assert {x: one[x] for x in ("layers", "documents", "queries", "withheld")} == {
            x: expected[x] for x in ("layers", "documents", "queries", "withheld")
        }
        assert one["note"] == tab.get("note", "")


def test_a_tab_has_its_own_n():
    given = tabs_of()
    name = list(given)[1]
    found = data_of(tabs.page("Demo", given | {name: given[name] | {"trained_on": 7}}))
    assert [x["trained_on"] for x in found["tabs"]] == [None, 7, None]


def test_a_page_with_tabs_loads_nothing_and_shows_texts_as_texts():
    html = tabs.page(HOSTILE, tabs_of(), HOSTILE)
    assert elsewhere(html) == [] and "<script>alert" not in html and "{{" not in html
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'") and policy.count("'sha256-") == 2
    assert html.count("<script") == html.count("</script>") == 2
    assert html == tabs.page(HOSTILE, tabs_of(), HOSTILE)


def test_every_slot_has_its_fragment():
    slots = re.findall(r"\{\{tab:(\w+)\}\}", page.TEMPLATE.read_text("utf-8"))
    fragments = re.findall(r"<!-- (\w+) -->\n", tabs.FRAGMENTS.read_text("utf-8"))
    assert sorted(slots) == sorted(fragments) and len(set(slots)) == len(slots)


def test_tabs_that_do_not_belong_together_are_refused(tmp_path):
    given = tabs_of()
    name, other = list(given.items())[1]
    few = {"queries": other["queries"][:2]}
    said = {"queries": [replace(x, answer_words=[" Oslo"]) for x in other["queries"]]}
    for change in (few, said):
        with pytest.raises(ValueError, match=f"the queries of '{name}' are not those of 'pre-tr"):
            tabs.write(tmp_path / "x.html", "Demo", given | {name: other | change})
    with pytest.raises(ValueError, match="1 tabs: expected at least two"):
        tabs.page("Demo", {name: other})
    assert not list(tmp_path.iterdir())
    path = tabs.write(tmp_path / "a" / "x.html", "Demo", given)
    assert path.read_text("utf-8") == tabs.page("Demo", given)
