"""The explorer's page: texts stay texts, equal input gives equal bytes,
lists that do not fit are named; what each token adds to a text."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch

from msif.core.data import encode_answers, encode_documents, word_tokenizer
from msif.core.ekfac import fit
from msif.core.influence import Damping, Scores, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import load_tokenizer, tiny_gpt_neox
from msif.show import explorer
from msif.show.explorer import Document, Entry, Query, page, prepared, show, words, write
from msif.show.parts import Part
from msif.study.pipeline.report import elsewhere

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> & \u2028 {{data}}"
DOCUMENTS = [
    Document("news", ["Ada", " was", " born"], "A"),
    Document("web", [HOSTILE], HOSTILE),
    Document("web", ["unseen"]),
]
PART = Part(0, 1, 3.0, [1.0, 2.5, -0.5], {"h.0": 1.0, "h.1": 2.0}, [4.0, -1.0, 0.0])


def query(**changes):
    rankings = {
        "ours": [Entry(0, 1, 3.0, PART), Entry(1, -1, -2.0)],
        "bm25": [Entry(1, 1, 7.123456)],
    }
    return replace(
        Query(
            "first", ["Who", "?"], [" Ada"], rankings, [-0.1], "right", HOSTILE, {0: "states it"}
        ),
        **changes,
    )


def built(queries=None, documents=DOCUMENTS, methods=None, **options):
    return page(
        f"Demo {HOSTILE}",
        documents,
        queries or [query()],
        methods or {"ours": "df/dw, nats", "bm25": HOSTILE},
        HOSTILE,
        **options,
    )


def data_of(html):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    )


def test_texts_survive_as_text_and_never_as_markup():
    html = built()
    assert "<script>alert" not in html and "<img" not in html and "<!--" not in html
    assert not set("<>&\u2028") & set(re.search('id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert html.count("<script") == html.count("</script>") == 2  # the data and the page's own
    found = data_of(html)
    assert (
        found["documents"]["1"]["words"] == [HOSTILE]
        and found["queries"][0]["note"] == found["about"] == HOSTILE
    )


def test_the_page_loads_nothing_and_says_so_to_the_browser():
    html = built()
    assert elsewhere(html) == []
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert (
        policy.startswith("default-src 'none'")
        and "unsafe" not in policy
        and policy.count("'sha256-") == 2
    )
    template = explorer.TEMPLATE.read_text("utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttpRequest"
        r"|https?://(?!www\.w3\.org/)",
        template,
    )


def test_equal_input_gives_equal_bytes_and_only_ranked_documents_are_in_it():
    assert built() == built() == built(documents=dict(enumerate(DOCUMENTS)))
    assert "unseen" not in built() and list(data_of(built())["documents"]) == ["0", "1"]


def test_the_data_are_what_was_given():
    found = data_of(built())
    assert found["layers"] == ["h.0", "h.1"] and list(found["methods"]) == ["ours", "bm25"]
    (one,) = found["queries"]
    assert one["rankings"] == {
        "ours": [[0, 1, 3.0, 1], [1, -1, -2.0, 0]],
        "bm25": [[1, 1, 7.123, 0]],
    }
    assert one["parts"] == {
        "0": {
            "score": 3.0,
            "tokens": [1.0, 2.5, -0.5],
            "layers": [1.0, 2.0],
            "query": [4.0, -1.0, 0.0],
        }
    }
    assert one["labels"] == {"0": "states it"} and one["logprobs"] == [-0.1]


def test_a_page_with_withheld_texts_has_no_word_of_any_document():
    html = built([query(note="")], withhold_texts=True)
    found = data_of(html)
    assert [d["words"] for d in found["documents"].values()] == [
        ["document 0 (text withheld: licence)"],
        ["document 1 (text withheld: licence)"],
    ]
    assert "born" not in html and found["documents"]["0"]["title"] is None
    assert found["queries"][0]["parts"]["0"]["tokens"] is None and found["queries"][0]["parts"][
        "0"
    ]["layers"] == [1.0, 2.0]


def test_a_query_without_words_has_neither_their_numbers():
    (one,) = data_of(built([query(prompt_words=[], answer_words=[])]))["queries"]
    assert one["logprobs"] is None and one["parts"]["0"]["query"] is None


def test_a_page_grows_with_what_it_shows_alone():
    """About 7 bytes a number beside the words:
    30 documents of 300 tokens are well below a megabyte."""
    long = [Document("web", [f" word{t}" for t in range(300)]) for _ in range(30)]
    entries = [
        Entry(n, n + 1, 1 / (n + 1), Part(n, 1, 1.0, [(-1) ** t / (t + 7) for t in range(300)]))
        for n in range(30)
    ]
    size = len(built([query(rankings={"ours": entries}, labels={})], long)) - len(built())
    words_alone = len(json.dumps([d.words for d in long]))
    assert size - words_alone < 30 * 300 * 12


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(rankings={"other": []}), "'first' is ranked by \\['other'\\]"),
        (dict(logprobs=[-1, -2]), "'first': logprobs has 2 numbers for 1 words"),
        (dict(rankings={"ours": [Entry(9, 1, 1.0)]}), "document 9 is ranked, and not among"),
        (dict(rankings={"ours": [Entry(0, 0, 1.0)]}), "rank 0"),
        (dict(rankings={"ours": [Entry(0, 1, float("nan"))]}), "a score of nan"),
        (
            dict(rankings={"ours": [Entry(1, 1, 1.0, PART)]}),
            "document 1: tokens has 3 numbers for 1 words",
        ),
        (dict(prompt_words=["Who?"]), "document 0: query_tokens has 3 numbers for 2 words"),
        (
            dict(
                rankings={
                    "ours": [Entry(0, 1, 3.0, PART)],
                    "bm25": [Entry(0, 1, 3.0, replace(PART, tokens=[1.0, 2.0, 0.0]))],
                }
            ),
            "different parts",
        ),
    ],
)
def test_lists_that_do_not_fit_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        built([query(**bad)])


def test_pages_without_queries_or_with_equal_ids_or_layers_that_differ_are_refused():
    other = query(
        id="second", rankings={"ours": [Entry(0, 1, 3.0, replace(PART, layers={"h.0": 3.0}))]}
    )
    for queries, message in (
        ([query(), query()], "the same id"),
        ([query(), other], "expected those of the first part"),
    ):
        with pytest.raises(ValueError, match=message):
            built(queries)
    with pytest.raises(ValueError, match="0 queries"):
        page("x", DOCUMENTS, [], {"ours": ""})
    with pytest.raises(ValueError, match="words is one string"):
        built(documents=[DOCUMENTS[0], Document("a", "text")])


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "explorer.html"
    for _ in range(2):
        assert write(path, "Demo", DOCUMENTS, [query()], {"ours": "", "bm25": ""}) == path
    assert path.read_text("utf-8") == page("Demo", DOCUMENTS, [query()], {"ours": "", "bm25": ""})
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write(path, "Demo", DOCUMENTS, [query()], {"ours": ""})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# -- words of tokens


def test_words_of_a_word_level_tokenizer_join_to_its_text():
    tokenizer = word_tokenizer(["ada was born in london ."])
    ids = tokenizer("ada was born in london .")["input_ids"]
    assert words(tokenizer, ids) == ["ada", " was", " born", " in", " london", " ."]
    assert words(tokenizer, []) == []


@pytest.mark.parametrize(
    "text",
    [
        "plain text, twice  spaced\nand a line",
        "naïve café 東京 🙂🙃 end",
        " leading",
        "\ufffd kept \ufffd",
    ],
)
def test_words_of_byte_level_tokens_join_to_the_text_though_characters_are_split(text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # one token a byte: every character is split
    bytes_alone = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone)
    found = words(tokenizer, tokenizer(text)["input_ids"])
    assert len(found) == len(text.encode()) and "".join(found) == text


@pytest.mark.parametrize("folder", ["pythia-tokenizer", "stories260K"])
def test_words_of_real_tokenizers_join_to_the_decoded_text(folder):
    if not (path := Path("data", folder)).exists():
        pytest.skip(f"{path} is not there; see the README for what belongs into data/")
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer("Once upon a time, naïve Zoë met a 🙂.\nThe end", add_special_tokens=False)[
        "input_ids"
    ]
    found = words(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == tokenizer.decode(
        ids, clean_up_tokenization_spaces=False
    )


# -- one's own scores

TEXTS = ["ada was born in london .", "bo came from paris .", "paris is a city ."]
PAIRS = [("where was bo born ?", "paris"), ("and ada ?", "london")]


def frame(shown):
    """The page inside a notebook's output."""
    return unescape(re.search('srcdoc="([^"]*)"', shown.data)[1])


def test_three_lines_show_the_scores_of_plain_texts():
    values = torch.tensor([[0.1, 0.9, -0.3], [2.0, 0.0, 1.0]])
    for scores in (values, values.numpy(), Scores(values, torch.ones(3))):
        shown = show(scores, zip(*zip(*PAIRS)), TEXTS)
        found = data_of(frame(shown))
        assert found["queries"][0]["rankings"] == {
            "influence": [[1, 1, 0.9, 0], [0, 2, 0.1, 0], [2, 3, -0.3, 0]]
        }
        assert found["documents"]["1"]["words"] == [TEXTS[1]] and found["queries"][1]["answer"] == [
            " london"
        ]
        assert 'sandbox="allow-scripts"' in shown.data and "allow-same-origin" not in shown.data
    both = prepared(
        {"a": values, "b": -values},
        PAIRS,
        TEXTS,
        count=1,
        opponents=1,
        sources=["x", "y", "z"],
        groups=["g", "h"],
        labels=[{1: "states it"}, {}],
        methods={"a": "nats"},
    )
    assert (
        both["methods"] == {"a": "nats", "b": ""}
        and both["documents"][2].source == "z"
        and both["queries"][0].labels == {1: "states it"}
    )
    assert [(e.document, e.rank) for e in both["queries"][0].rankings["b"]] == [(2, 1), (1, -1)]


@pytest.fixture(scope="module")
def pair():
    tokenizer = word_tokenizer([*TEXTS, *(f"{p} {a}" for p, a in PAIRS)])
    base, tuned = (
        tiny_gpt_neox(len(tokenizer), width=8, layers=2, heads=2, context=16, seed=k)
        for k in (0, 1)
    )
    documents = encode_documents(TEXTS, tokenizer, 16)
    queries = encode_answers(*zip(*PAIRS), tokenizer, 16)
    layers = tracked_layers(base)
    tracked_base = Tracked(base, layers)
    tracked_tuned = Tracked(tuned, layers)
    stages = [
        Stage(fit(tracked_base, documents), Damping(0.1)),
        Stage(fit(tracked_tuned, queries), alpha=Damping(0.1)),
    ]
    w = precondition(query_gradients(tracked_tuned, queries), stages)[0]
    return (
        dict(tokenizer=tokenizer, model=tracked_base, w=w),
        dict(tuned=tracked_tuned, stages=stages),
        documents,
        queries,
    )


def test_with_models_the_parts_of_every_shown_document_sum_to_its_score(pair):
    given, more, documents, queries = pair
    scores = score(given["model"], documents, given["w"], per_layer=True)
    for options, has_query in (
        (given, False),
        (given | more, True),
        ({k: v for k, v in given.items() if k != "w"} | more, True),
    ):
        found = prepared(
            {"ours": scores, "reversed": -scores.values},
            queries,
            documents,
            count=2,
            opponents=1,
            **options,
        )
        for k, q in enumerate(found["queries"]):
            for entry in [e for ranking in q.rankings.values() for e in ranking]:
                whole = scores.values[k, entry.document].item()
                splits = [entry.part.tokens, entry.part.layers.values()] + [
                    entry.part.query_tokens
                ] * has_query
                assert entry.part.score == pytest.approx(whole, rel=1e-4)
                assert all(
                    sum(x)
                    == pytest.approx(whole, rel=1e-4, abs=1e-4 * scores.values.abs().max().item())
                    for x in splits
                )
            assert "".join(q.prompt_words + q.answer_words) == " ".join(
                PAIRS[k]
            ) and q.answer_words == [f" {PAIRS[k][1]}"]
            assert (q.logprobs is not None) == has_query
        page("x", **found)


def test_scores_with_layers_show_them_without_any_model(pair):
    given, _, documents, _ = pair
    scores = score(given["model"], documents, given["w"], per_layer=True)
    part = prepared(scores, PAIRS, TEXTS)["queries"][1].rankings["influence"][0].part
    assert part.tokens is None and sum(part.layers.values()) == pytest.approx(part.score, rel=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scores=torch.zeros(2, 4)), r"shape \(2, 4\); expected \(2, 3\)"),
        (dict(scores={}), "there are no scores"),
        (dict(sources=["a"]), "sources has 1 entries; expected 3"),
        (dict(queries=["text", "text"]), "expected a pair"),
        (dict(documents=[1, 2, 3]), "type int"),
        (dict(w={}), "w or stages without model"),
        (dict(model=object()), "model without w"),
        (dict(model=object(), w={}), "queries are not all data.Sequence"),
    ],
)
def test_bad_scores_and_texts_are_refused_with_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        prepared(**dict(scores=torch.zeros(2, 3), queries=PAIRS, documents=TEXTS) | change)


def test_sequences_need_their_tokenizer_and_a_labelled_answer(pair):
    given, _, documents, queries = pair
    with pytest.raises(ValueError, match="without tokenizer"):
        prepared(torch.zeros(2, 3), queries, documents)
    silent = [replace(q, labels=(-100,) * len(q.labels)) for q in queries]
    with pytest.raises(ValueError, match="no labelled token"):
        prepared(torch.zeros(2, 3), silent, documents, tokenizer=given["tokenizer"])
