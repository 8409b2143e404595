"""Tabs in a real headless Chromium: by mouse, keys and address, for one query at a time."""

import pytest
from support.explorer_reader import Reader
from support.explorer_tabs import tabs_of

from msif.view.tabs import write

pytestmark = pytest.mark.slow

ROWS = "fine-tuning rows"


@pytest.fixture(scope="module")
def tabbed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tabs") / "explorer.html", "Demo", tabs_of()).as_uri()


@pytest.fixture
def reader(browser, tabbed):
    found = Reader(browser, tabbed)
    browser.get("about:blank")
    found.logged()
    found.size(1400, 1000)
    found.scheme("light")
    found.open()
    yield found
    errors, addresses = found.logged()
    assert errors == [] and all(x.startswith(("file:///", "about:")) for x in addresses)


def selected(reader):
    """Names of the tabs that are selected, and those that Tab reaches."""
    tabs = reader.all('[role="tablist"] [role="tab"]')
    chosen = [x.text for x in tabs if x.get_attribute("aria-selected") == "true"]
    assert chosen == [x.text for x in tabs if x.get_attribute("tabindex") == "0"]
    panel = reader.one('[role="tabpanel"]')
    label = reader.one(f"#{panel.get_attribute('aria-labelledby')}")
    assert [label.text] == chosen
    assert all(x.get_attribute("aria-controls") == panel.get_attribute("id") for x in tabs)
    return chosen


def test_a_tab_shows_its_stage_s_documents_for_the_same_query(reader):
    assert selected(reader) == ["pre-training documents"] and reader.shown("ours") == [0, 2, 1]
    assert reader.texts("#stage") == ["Stage 1 of 3."]
    reader.all("#list li")[2].click()
    asked = reader.asked
    reader.all('[role="tab"]')[1].click()
    assert selected(reader) == [ROWS] and reader.shown("ours") == [1, 0]
    assert reader.asked == asked and reader.link["t"] == [ROWS]
    assert reader.texts(".doc .text") == ["Who? Ada", "Where is Cy? Rome"]
    assert not reader.all(".low.divider")
    said = reader.texts('[data-method="bm25"] .soft')
    assert said[-1] == "This method has no ranking for this query."
    reader.all(".doc")[0].click()
    assert reader.link["d"] == ["1"] and reader.all(".doc .bars")
    reader.type("]")
    assert selected(reader) == ["preference pairs"] and "d" not in reader.link
    assert reader.texts(".doc .text") == ["Rome\n≻ Oslo"]
    reader.type("]")
    assert selected(reader) == ["pre-training documents"] and reader.asked == asked
    reader.type("[")
    assert selected(reader) == ["preference pairs"]


def test_the_same_number_is_another_text_in_another_tab(reader):
    reader.js("update({ f: 'cy?' })")
    assert reader.one("#matches").text == "0 of 4 documents"
    reader.type("]")
    assert reader.one("#matches").text == "1 of 2 documents" and reader.shown("ours") == [0]
    reader.js("update({ f: 'london' })")
    assert reader.one("#matches").text == "0 of 2 documents"
    reader.type("[")
    assert reader.one("#matches").text == "2 of 4 documents"


def test_arrows_move_among_tabs_and_elsewhere_among_queries(reader):
    reader.js("document.getElementById('tab-0').focus()")
    for key, name in (("ARROW_RIGHT", ROWS), ("END", "preference pairs"), ("ARROW_RIGHT", None)):
        reader.key(key)
        assert selected(reader) == [name or "pre-training documents"]
        focused = reader.js("return document.activeElement.textContent")
        assert focused == (name or "pre-training documents") and reader.link["q"] == ["ada"]
    reader.key("ARROW_LEFT")
    reader.key("HOME")
    assert selected(reader) == ["pre-training documents"]
    reader.js("document.activeElement.blur()")
    reader.key("ARROW_RIGHT")
    assert reader.link["q"] == ["bo & co"] and selected(reader) == ["pre-training documents"]


def test_an_address_names_the_tab(reader):
    reader.open("#q=bo+%26+co&m=ours&d=1&t=fine-tuning+rows")
    assert selected(reader) == [ROWS] and reader.asked == "Where is Bo from?"
    assert reader.one('.doc[aria-current="true"]').get_attribute("data-n") == "1"
    reader.open("#t=nothing")
    assert selected(reader) == ["pre-training documents"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tabs_fit_on_a_phone_and_can_be_read(reader, scheme):
    reader.size(390, 800)
    reader.scheme(scheme)
    reader.open()
    assert reader.js("return document.documentElement.scrollWidth") <= 390
    for tab in reader.all('[role="tab"]'):
        box = tab.rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
    contrast = reader.js("""
        const read = { willReadFrequently: true };
        const canvas = document.createElement('canvas').getContext('2d', read);
        const light = colour => {
            canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(x => x / 255)
                .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const page = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll('.tab')].map(x => light(getComputedStyle(x).color))
            .map(x => (Math.max(x, page) + .05) / (Math.min(x, page) + .05));
    """)
    assert min(contrast) >= 4.5
