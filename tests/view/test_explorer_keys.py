"""The explorer's page in a real headless Chromium, by keys and on a narrow screen."""

import pytest

pytestmark = pytest.mark.slow


def test_a_query_is_selected_by_click_by_arrows_and_by_buttons(reader):
    reader.all("#list li")[1].click()
    assert (
        reader.asked == "Where is Bo from?"
        and reader.link["q"] == ["bo & co"]
        and "The model errs." in reader.one("#query").text
    )
    assert [x.get_attribute("aria-selected") for x in reader.all("#list li")] == [
        "false",
        "true",
        "false",
    ]
    reader.key("ARROW_LEFT")
    assert reader.asked == "Where was Ada born?"
    reader.key("ARROW_RIGHT")
    assert reader.asked == "Where is Bo from?"
    reader.one('[aria-label="Previous query"]').click()
    assert reader.asked == "Where was Ada born?"
    reader.js("document.getElementById('list').focus()")
    reader.key("ARROW_DOWN")
    assert (
        reader.asked == "Where is Bo from?"
        and reader.one("#list").get_attribute("aria-activedescendant") == "query-1"
    )


def test_numbers_show_on_hover_and_on_focus_and_arrows_move_between_tokens(reader):
    from selenium.webdriver import ActionChains

    tokens = reader.all('[data-method="ours"] .doc[data-n="0"] .t')
    ActionChains(reader.driver).move_to_element(tokens[4]).perform()
    assert reader.one("#tip").text == "−1.00"
    reader.js("arguments[0].focus()", tokens[0])
    assert (
        reader.one("#tip").text == "+3.00" and tokens[0].get_attribute("aria-describedby") == "tip"
    )
    reader.key("ARROW_RIGHT")
    reader.key("ARROW_RIGHT")
    assert reader.one("#tip").text == "+0.500" and reader.asked == "Where was Ada born?"


def test_documents_are_walked_by_keys_and_opponents_can_be_left_out(reader):
    def here():
        return reader.js("return document.querySelector('.doc[aria-current]')?.dataset.n")

    for key, expected in (("j", "0"), ("j", "2"), ("j", "1"), ("j", "1"), ("k", "2")):
        reader.type(key)
        assert (
            here() == expected and reader.js("return document.activeElement.dataset.n") == expected
        )
    reader.key("ARROW_UP")
    assert here() == "0"
    reader.type("o")
    assert reader.shown("ours") == [0, 2] and reader.link["o"] == ["0"]
    reader.one("#low").click()
    assert reader.shown("ours") == [0, 2, 1]


@pytest.mark.parametrize("width", [320, 360, 400])
def test_a_phone_has_one_column_and_no_horizontal_scrolling(reader, width):
    reader.size(width, 740)
    reader.open("#m=ours&m=bm25&d=2")
    assert (
        reader.js("return document.documentElement.scrollWidth")
        <= width
        == reader.js("return innerWidth")
    )
    left = {round(x.rect["x"]) for x in reader.all(".method")}
    assert len(reader.all(".method")) == 2 and len(left) == 1
    assert not reader.one("#list").is_displayed()
    reader.one("#side summary").click()
    reader.all("#list li")[1].click()
    assert reader.asked == "Where is Bo from?" and not reader.one("#list").is_displayed()
