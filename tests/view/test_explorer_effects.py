"""What leaving a document out does, on its card in a real headless Chromium: −score / N, nats."""

import re

import pytest
from support.explorer_demo import DOCUMENTS, queries
from support.explorer_page import data_of
from support.explorer_reader import Reader
from support.explorer_tabs import METHODS, tabs_of

from msif.view import tabs
from msif.view.page import write

pytestmark = pytest.mark.slow

N = 48


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("effects") / "explorer.html"
    return write(path, "Demo", DOCUMENTS, queries(), METHODS, trained_on=N).as_uri()


def effects(reader, method):
    """{number of a document: what its card says of leaving it out}."""
    cards = reader.all(f'[data-method="{method}"] .doc')
    found = {
        int(x.get_attribute("data-n")): x.find_elements("css selector", ".effect") for x in cards
    }
    return {n: [x.text for x in said] for n, said in found.items()}


def test_an_effect_is_minus_the_plain_score_over_n_in_nats(reader, address):
    """Of every ranking, by text search too; none where the page has no part of the document."""
    html = Reader(reader.driver, address).driver.page_source
    [first, *_] = data_of(html)["queries"]
    for method in ("ours", "bm25"):
        found = effects(reader, method)
        assert found.keys() == {e[0] for e in first["rankings"][method]}
        for n, said in found.items():
            part = first["parts"].get(str(n))
            assert len(said) == (part is not None)
            for text in said:
                number = re.fullmatch("without it: ([+−]?[0-9.]+) nats", text)[1]
                value = float(number.replace("−", "-"))
                assert value == float(f"{-part['score'] / N:.2g}") and value * part["score"] < 0
    assert effects(reader, "ours") == {
        0: ["without it: −0.083 nats"],  # a proponent
        2: ["without it: −0.021 nats"],
        1: ["without it: +0.042 nats"],  # an opponent
    }


@pytest.mark.parametrize(
    "n, said",
    [(1, "−4.0"), (3000, "−0.0013"), (10**6, "−4.0e−6"), (0.03, "−130"), (0.00003, "−130,000")],
)
def test_an_effect_has_two_digits(reader, n, said):
    reader.js(f"D.trained_on = {n}; draw()")
    assert effects(reader, "ours")[0] == [f"without it: {said} nats"]


def test_a_card_has_one_score_the_one_it_is_ranked_by(reader):
    """Its part's score, 4, is nowhere beside the 6 of the search."""
    card = reader.one('[data-method="bm25"] .doc[data-n="0"]')
    card.click()
    said = card.find_element("css selector", ".numbers").text.split("\n")
    assert said == ["2", "6.00", "without it: −0.083 nats", "news", "states it"]
    assert "4.00" not in card.find_element("css selector", "figcaption").text
    assert len(card.find_elements("css selector", ".score")) == 1


def test_the_effect_is_told_to_be_an_estimate(reader):
    from selenium.webdriver import ActionChains

    told = (
        "By the plain score, whatever the ranking: a first-order estimate, whose size depends on "
        "the damping."
    )
    legend = reader.one("#legend").text
    assert told in legend and f", N = {N} documents" in legend
    ActionChains(reader.driver).move_to_element(reader.all(".effect")[0]).perform()
    assert reader.one("#tip").text == told


def test_a_page_without_n_has_no_effects(reader, tmp_path):
    path = write(tmp_path / "plain.html", "Demo", DOCUMENTS, queries(), METHODS)
    reader.load(path.as_uri())
    assert reader.shown("ours") == [0, 2, 1] and reader.all(".effect") == []
    assert "ithout it" not in reader.one("main").text


def test_each_tab_has_its_own_n(reader, tmp_path):
    name, given = "fine-tuning rows", tabs_of()
    given |= {name: given[name] | {"trained_on": 10}}
    reader.load(tabs.write(tmp_path / "tabs.html", "Demo", given).as_uri())
    assert reader.all(".effect") == []
    reader.type("]")
    assert effects(reader, "ours") == {
        1: ["without it: −0.50 nats"],
        0: ["without it: −0.30 nats"],
    }
    reader.type("]")
    assert reader.all(".effect") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_effects_fit_on_a_phone(reader, scheme):
    reader.size(390, 800)
    reader.scheme(scheme)
    reader.open("#m=ours&m=bm25&d=0")
    assert reader.js("return document.documentElement.scrollWidth") <= 390
    for x in reader.all(".effect"):
        assert x.rect["x"] >= 0 and x.rect["x"] + x.rect["width"] <= 390
