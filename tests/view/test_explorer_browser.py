"""The explorer's page in a real headless Chromium: what a reader sees and does,
and that nothing leaves the page."""

import pytest
from support.explorer_demo import HOSTILE

from msif.view.explorer import prepared, show, write

pytestmark = pytest.mark.slow

PIXEL = """const pixel = colour => {
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const background = node => pixel(getComputedStyle(node).backgroundColor);
"""  # [red, green, blue, alpha] of a colour, and of what is behind a node


def test_the_page_opens_with_the_first_query_and_two_methods(reader):
    assert reader.texts("h1") == ["Demo"] and len(reader.all("#list li")) == 3
    assert reader.asked == "Where was Ada born?" and "London" in reader.one("#answer").text
    assert "−0.250" in reader.one("#logp").text and "78%" in reader.one("#answer rt").text
    assert reader.texts(".method h3") == ["ours", "bm25"]
    assert reader.shown("ours") == [0, 2, 1] and reader.shown("bm25") == [3, 0]
    assert reader.texts('[data-method="ours"] .rank') == ["1", "2", "↓1"] and reader.texts(
        '[data-method="ours"] .score'
    ) == ["+4.00", "+1.00", "−2.00"]
    # a search score has no sign
    assert reader.texts('[data-method="bm25"] .score') == [
        "7.50",
        "6.00",
    ]


def test_queries_are_searched_and_filtered_by_group(reader):
    reader.type("q")
    reader.type("rome")
    assert len(reader.all("#list li")) == 1 and reader.one("#count").text == "1 of 3"
    reader.key("ENTER")
    assert reader.asked == "Where is Bo from?"
    reader.one("#asked").clear()
    next(x for x in reader.all("#groups button") if x.text == "wrong answer").click()
    assert len(reader.all("#list li")) == 2 and reader.link["g"] == ["wrong answer"]


def test_documents_are_searched_and_filtered_by_source(reader):
    reader.type("/")
    reader.type("london")
    assert (
        reader.shown("ours") == [0]
        and reader.shown("bm25") == [3, 0]
        and reader.one("#matches").text == "2 of 4 documents"
    )
    reader.key("ESCAPE")
    reader.js("""const s = document.getElementById('source');
        s.value = 'encyclopedia';
        s.dispatchEvent(new Event('change'));""")
    assert (
        reader.shown("ours") == []
        and "No document matches" in reader.one('[data-method="ours"]').text
        and reader.shown("bm25") == [3]
    )


def opened(reader):
    """(the numbers of the cards that are open, of those with layers)."""
    cards = '.doc[aria-current="true"]'
    return (
        [int(x.get_attribute("data-n")) for x in reader.all(cards)],
        [int(x.get_attribute("data-n")) for x in reader.all(f"{cards}:has(.bars)")],
    )


def search(reader, text):
    """Put a text into the search of documents, in place of what is there."""
    find = reader.one("#find")
    reader.js("arguments[0].focus(); arguments[0].select()", find)
    reader.key("BACKSPACE")
    find.send_keys(text)


def test_the_sole_match_of_a_search_is_open_while_it_is_the_sole_one(reader):
    search(reader, "london")
    assert opened(reader) == ([], [])  # two documents
    search(reader, "london is a")
    assert reader.shown("bm25") == [3] and opened(reader) == ([3], [])  # nothing known of its parts
    search(reader, "")
    assert opened(reader) == ([], []) and "d" not in reader.link
    search(reader, "was born")  # in both columns, its layers in the first
    assert opened(reader) == ([0, 0], [0]) and reader.one("#matches").text == "1 of 4 documents"
    assert "document 0 acts through" in reader.one("#query").text
    assert reader.js("return document.activeElement.id") == "find"
    search(reader, "nowhere")
    assert reader.all(".doc") == [] and "document 0" not in reader.one("#query").text
    reader.open("#f=was+born")  # a link to the search
    assert opened(reader) == ([0, 0], [0])
    reader.key("ESCAPE")
    assert opened(reader) == ([], [])
    reader.open("#s=encyclopedia")
    assert opened(reader) == ([3], [])


def test_what_a_reader_opened_is_open_after_the_search(reader):
    reader.one('[data-method="ours"] .doc[data-n="1"]').click()
    for found, cards in (("was born", [0, 0]), ("about bo", [1])):
        search(reader, found)
        assert opened(reader)[0] == cards
        search(reader, "")
        assert opened(reader) == ([1], [1])
    search(reader, "was born")
    reader.one('[data-method="bm25"] .doc').click()  # chosen now, not only found
    search(reader, "")
    assert opened(reader) == ([0, 0], [0]) and reader.link["d"] == ["0"]


def test_an_opponent_that_is_left_out_is_no_match(reader):
    reader.type("o")
    search(reader, "about bo")
    assert reader.all(".doc") == [] and opened(reader) == ([], [])


def test_tokens_are_shaded_by_their_sign(reader):
    tokens = reader.all('[data-method="ours"] .doc[data-n="0"] .t')
    assert [x.text for x in tokens] == ["Ada", "was", "born", "in", "London"]
    assert ["pro" in x.get_attribute("class").split() for x in tokens] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert ["opp" in x.get_attribute("class").split() for x in tokens] == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert ["strong" in x.get_attribute("class").split() for x in tokens] == [
        True,
        False,
        False,
        True,
        False,
    ]
    colours = reader.js(PIXEL + "return [...arguments[0]].map(background);", tokens)
    (red, _, blue, strong), (*_, none), *_, weakest = [colours[k] for k in (0, 1, 4)]
    assert blue > red and none == 0 and weakest[0] > weakest[2] and strong > weakest[3] > 0
    assert reader.texts('[data-method="bm25"] .t.pro') == []  # no parts were given there


def test_the_query_is_shaded_by_the_proponents_and_by_the_selected_document(reader):
    def shares():
        return [x.get_attribute("data-tip") for x in reader.all("#query .t")]

    assert shares() == ["+5.00", "0", "0 · log p −0.250"]  # 3 + 2, 1 − 1
    reader.one('[data-method="ours"] .doc[data-n="1"]').click()
    assert shares()[:2] == ["−3.00", "+1.00"] and "opp" in reader.all("#query .t")[0].get_attribute(
        "class"
    )
    reader.key("ESCAPE")
    assert shares()[0] == "+5.00"


def test_a_selected_document_shows_its_layers_and_is_marked_in_every_column(reader):
    assert len(reader.all(".doc .bars")) == 0 and len(reader.all("#query .bars")) == 1
    reader.one('[data-method="ours"] .doc[data-n="0"]').click()
    assert [
        x.get_attribute("class")
        for x in reader.all(".doc .bars svg rect.pro, .doc .bars svg rect.opp")
    ] == ["pro", "opp", "pro", "opp"]
    assert reader.all(".doc .bars .hit")[1].get_attribute(
        "data-tip"
    ) == "layers.0.mlp  −1.00" and "layers.0.attention +4.00" in reader.one(
        ".doc .bars svg"
    ).get_attribute("aria-label")
    assert (
        reader.texts(".doc .bars text") == ["block 0", "1"]
        and "nats" in reader.one(".doc .bars figcaption").text
    )
    assert len(reader.all('.doc[aria-current="true"]')) == 2
    assert reader.texts('[data-method="ours"] .doc[data-n="0"] .also')[0].split("\n") == ["bm25: 2"]


def test_methods_are_compared_and_a_rank_elsewhere_leads_there(reader):
    reader.one(
        '[data-method="ours"] .doc[data-n="1"] .also button'
    ).click()  # "third: 1" opens that method
    assert reader.texts(".method h3") == ["ours", "bm25", "third"]
    assert (
        reader.one('[data-method="third"] .doc[data-n="1"]')
        == reader.driver.switch_to.active_element
    )
    reader.all("#methods button")[1].click()
    assert reader.texts(".method h3") == ["ours", "third"] and reader.link["m"] == ["ours", "third"]
    reader.type("2")
    assert reader.texts(".method h3") == ["bm25"]


def test_a_link_leads_back_to_what_was_seen(reader):
    reader.all("#list li")[0].click()
    reader.all("#methods button")[0].click()
    reader.all("#methods button")[2].click()
    reader.type("/")
    reader.type("bo")
    reader.key("ESCAPE")
    reader.one('[data-method="third"] .doc').click()
    link = reader.js("return location.hash")
    seen = reader.js("return document.querySelector('main').innerText")
    reader.open()
    assert reader.js("return document.querySelector('main').innerText") != seen
    reader.open(link)
    assert (
        reader.js("return document.querySelector('main').innerText") == seen
        and reader.one("#find").get_attribute("value") == "bo"
    )
    reader.js("location.hash = '#q=bo+%26+co'")  # a link followed inside the open page
    assert reader.asked == "Where is Bo from?"
    reader.open("#q=nobody&m=nothing&d=77&s=")  # of another page: what is there, is shown
    assert reader.asked == "Where was Ada born?" and reader.shown("ours") == [0, 2, 1]


def test_light_and_dark_follow_the_system_and_the_switch(reader):
    def brightness():
        *colour, _ = reader.js(PIXEL + "return background(document.body);")
        return sum(colour) / 3

    assert brightness() > 200
    reader.scheme("dark")
    assert brightness() < 60
    reader.one("#theme").click()
    assert brightness() > 200
    reader.type("t")
    assert brightness() < 60
    reader.js("localStorage.clear()")


def test_a_hostile_document_is_shown_as_text(reader):
    assert HOSTILE in reader.one('[data-method="ours"] .doc[data-n="2"]').text
    reader.all("#list li")[2].click()
    assert HOSTILE in reader.asked and reader.all("main img, main script") == []
    reader.type("?")
    assert HOSTILE in reader.one("#about").text and reader.js(
        "return document.getElementById('helping').open"
    )
    reader.key("ESCAPE")
    assert (
        not reader.js("return document.getElementById('helping').open") and reader.all("img") == []
    )


def test_even_a_script_in_the_page_could_not_reach_the_network(reader):
    refused = reader.driver.execute_async_script("""const done = arguments[0];
        const report = e => done([e.effectiveDirective, e.blockedURI]);
        addEventListener('securitypolicyviolation', report);
        new Image().src = 'http://127.0.0.1:9/x.png';""")
    assert refused == ["img-src", "http://127.0.0.1:9/x.png"]
    added = reader.js(
        """const s = document.createElement('script');
        s.textContent = "document.title = 'owned'";
        document.body.append(s);
        return document.title;"""
    )
    assert added == "Demo"
    errors, _ = reader.logged()
    # what every other test asserts the absence of, is seen
    assert len(errors) == 2 and all("Content Security Policy" in x for x in errors)
    reader.open()


def test_inside_a_notebook_it_runs_in_a_sandbox(reader, tmp_path):
    shown = show([[1.0, -1.0]], [("Who?", HOSTILE)], ["first text", HOSTILE], title="Mine")
    outer = tmp_path / "notebook.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8>{shown.data}", "utf-8")
    reader.load(outer.as_uri())
    assert reader.js("return document.querySelector('iframe').contentDocument") is None
    reader.driver.switch_to.frame(reader.one("iframe"))
    assert (
        reader.texts("h1") == ["Mine"]
        and reader.shown("influence") == [0, 1]
        and HOSTILE in reader.one('.doc[data-n="1"]').text
    )
    reader.type("?")
    reader.driver.switch_to.default_content()


def test_a_page_of_withheld_texts_still_ranks(reader, tmp_path):
    data = prepared(
        [[1.0, -1.0]], [("Who?", "Ada")], ["secret words", "more secrets"], sources=["web", "web"]
    )
    path = write(tmp_path / "withheld.html", "Demo", **data, withhold_texts=True)
    reader.load(path.as_uri())
    assert (
        reader.texts(".doc .text") == [f"document {n} (text withheld: licence)" for n in (0, 1)]
        and "secret" not in reader.driver.page_source
    )
