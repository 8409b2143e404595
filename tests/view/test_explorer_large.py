"""The explorer's page of long texts and many documents draws what is looked at, and what cannot
be seen in a text is named: in a real headless Chromium."""

import pytest
from support.explorer_reader import Reader

from msif.view.page import Document, Entry, Query, write
from msif.view.parts import Part
from msif.view.words import UNSEEN

pytestmark = pytest.mark.slow

LONG, MANY = 70_000, 5_000
TURNED = "ans\u202ewer\u202c"
STEP = """const all = [...document.querySelectorAll(arguments[0])];
    const rest = all.filter(x => x.getClientRects().length);
    rest.forEach(x => x.scrollIntoView({block: 'center'}));
    return rest.length;"""


def shown(browser, tmp_path, documents, queries, **options):
    """A reader before a page; in the end, `errors` must be empty."""
    methods = {name: "" for query in queries for name in query.rankings}
    path = write(tmp_path / "explorer.html", "Demo", documents, queries, methods, **options)
    reader = Reader(browser, path.as_uri())
    browser.get("about:blank")
    reader.logged()
    reader.size(1400, 1000)
    reader.open()
    return reader


def errors(reader):
    return reader.logged()[0]


def nodes(reader):
    return reader.js("return document.querySelectorAll('*').length")


def scrolled(reader, css, most=200):
    """Scroll to the end of what a selector's pieces have, as often as there is more."""
    from selenium.webdriver.support.ui import WebDriverWait

    for _ in range(most):
        before = nodes(reader)
        if not reader.js(STEP, css):
            return
        WebDriverWait(reader.driver, 10).until(
            lambda _: nodes(reader) != before or not reader.all(css)
        )
    raise AssertionError(f"{css}: there is more after {most} pieces")


def words(n):
    return [f" w{k}" for k in range(n)]


def test_a_text_of_any_length_is_drawn_in_pieces_to_its_last_word(browser, tmp_path):
    tokens = [(-1) ** k * (k % 7) / 7 for k in range(LONG)]
    part = Part(0, 1, sum(tokens), tokens, {"layers.0.mlp": sum(tokens)})
    documents = [Document("", words(LONG)), Document("", ["whole text " * 10_000])]
    entries = [Entry(0, 1, 1.0, part), Entry(1, 2, 0.5)]
    reader = shown(
        browser, tmp_path, documents, [Query("a", ["Who?"], [" Ada"], {"ours": entries})]
    )
    assert nodes(reader) < 3000 and "w0 w1" in reader.texts(".doc .text")[0]
    for number, document in enumerate(documents):
        before = nodes(reader)
        reader.js("select(arguments[0], 0)", number)
        assert nodes(reader) < before + 15_000
        scrolled(reader, ".doc[aria-current] .text .rest")
        text = reader.js("return document.querySelector('.doc[aria-current] .text').textContent")
        assert text == "".join(document.words)
    assert reader.js("return document.querySelectorAll('.doc .t[data-tip]').length") == LONG
    assert errors(reader) == []


def test_long_prompts_and_answers_are_drawn_in_pieces_and_leave_the_documents_in_reach(
    browser, tmp_path
):
    """Three, of which the page looks for what they share."""
    queries = [
        Query(f"{k}", [*words(60_000), ":", f" {k}?"], [" so"] * 2500, {"ours": [Entry(0, 1, 1.0)]})
        for k in range(3)
    ]
    reader = shown(browser, tmp_path, [Document("", ["text"])], queries)
    assert nodes(reader) < 10_000 and reader.js("return HEAD") == 60_001
    assert reader.js("return document.querySelector('.doc').getBoundingClientRect().top") < 2000
    scrolled(reader, "#prompt .rest")
    assert len(reader.js("return document.getElementById('prompt').textContent")) > 300_000
    assert errors(reader) == []


@pytest.fixture
def many(browser, tmp_path):
    documents = [Document("", words(120), f"title {n}") for n in range(MANY)]
    up = [Entry(n, n + 1, 1.0 - n / MANY) for n in range(MANY - 100)]
    down = [Entry(MANY - 1 - n, -1 - n, -1.0) for n in range(100)]
    backwards = [Entry(MANY - 1 - n, n + 1, 1.0) for n in range(MANY)]
    first = Query("a", ["Who?"], [" Ada"], {"ours": up + down, "bm25": backwards})
    more = [Query(f"q{k}", [f"Ask {k}"], [""], {"ours": [Entry(k, 1, 1.0)]}) for k in range(MANY)]
    reader = shown(browser, tmp_path, documents, [first, *more])
    yield reader
    assert errors(reader) == []


def test_of_many_documents_those_that_are_looked_at_are_drawn(many):
    assert nodes(many) < 25_000 and many.shown("ours")[:3] == [0, 1, 2]
    last = many.js("return document.querySelector('[data-method=ours] .rest').outerHTML")
    assert "more" in last
    before = len(many.shown("ours"))
    many.js(STEP, "[data-method=ours] .rest")
    many.driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    assert before < len(many.shown("ours")) < before + 200
    many.type("/")
    many.type("title 4321")
    assert many.shown("ours") == many.shown("bm25") == [4321]
    assert many.one("#matches").text == f"1 of {MANY} documents"


def test_a_document_far_down_is_reached_by_link_by_key_and_from_another_method(many):
    many.open("#q=a&m=ours&d=4444")
    assert 4444 in many.shown("ours") and nodes(many) < 30_000
    assert many.js("return document.querySelector('.doc[aria-current]').dataset.n") == "4444"
    many.type("j")
    assert many.js("return document.activeElement.dataset.n") == "4445"
    many.one("[data-method=ours] .rest:first-child button").click()  # what lies before it
    assert many.shown("ours")[0] == 4444 - 3 - 30 and 4444 in many.shown("ours")
    many.open("#q=a&m=ours&m=bm25")
    many.js("jump('bm25', 7)")
    assert many.js("return document.activeElement.closest('.method').dataset.method") == "bm25"
    assert nodes(many) < 30_000
    many.all(".divider button")[0].click()
    low = "return document.querySelector('.low.divider').getBoundingClientRect().top"
    assert 0 <= many.js(low) < 1000  # the opponents, however many stand above them


def test_of_many_queries_those_that_are_looked_at_are_listed(many):
    assert len(many.all("#list li")) < 400 and many.one("#count").text == f"{MANY + 1}"
    many.open("#q=q4000")
    selected = many.one('#list [aria-selected="true"]')
    assert selected.text == "Ask 4000" and many.asked == "Ask 4000"
    many.key("ARROW_RIGHT")
    assert many.asked == "Ask 4001" and len(many.all("#list li")) < 400


def test_what_cannot_be_seen_or_turns_a_text_around_is_named_wherever_text_is(browser, tmp_path):
    part = Part(0, 1, 1.0, [0.5, 0.25, 0.25], {"h.0": 1.0}, [1.0, 0.0])
    text = Document(TURNED, [TURNED, "\x07\x1b[31m\x00", " \ufeff\u200b"], TURNED)
    query = Query(
        TURNED, [TURNED], [TURNED], {TURNED: [Entry(0, 1, 1.0, part)]}, [-0.5], TURNED, TURNED,
        {0: TURNED},
    )  # fmt: skip
    documents = [text, Document(TURNED + "2", ["b"])]
    other = Query("b", [], [], {TURNED: [Entry(1, 1, 1.0)]}, group="g")
    reader = shown(browser, tmp_path, documents, [query, other], about=TURNED)
    assert reader.texts(".doc .text")[0] == "ansRLOwerPDFBEL ESC[31mNUL BOM ZWSP"
    assert reader.asked == "ansRLOwerPDF" and reader.one("#answer .t").text == "ansRLOwerPDF"
    assert reader.texts("h3") == ["ansRLOwerPDF"]
    every = reader.js("""const found = [document.title];
        for (const x of document.querySelectorAll('body, body *:not(script)'))
          found.push(...[...x.childNodes].filter(y => y.nodeType === 3).map(y => y.data),
            ...['title', 'aria-label', 'data-tip'].map(a => x.getAttribute(a) || ''));
        return found;""")
    assert len(every) > 100 and not any(UNSEEN.search(x) for x in every)
    reader.type("/")
    reader.type("answer")  # as one reads it
    assert reader.shown(TURNED) == [0]
    assert errors(reader) == []


def test_the_page_and_the_library_name_the_same_characters(browser, tmp_path):
    documents, ranked = [Document("", ["text"])], {"ours": [Entry(0, 1, 1.0)]}
    reader = shown(browser, tmp_path, documents, [Query("a", ["Who?"], [" Ada"], ranked)])
    found = reader.js("""const found = [];
        for (let n = 0; n < 0x110000; n++)
          if (String.fromCodePoint(n).search(UNSEEN) >= 0) found.push(n);
        return found;""")
    assert found == [n for n in range(0x110000) if UNSEEN.match(chr(n))]
