"""The corpus of annotated real sentences: laws on a miniature written here,
and on WebNLG itself (skipped where it is absent)."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from msif.core.data import encode_answers, encode_documents
from msif.core.models import limits, load_model, load_tokenizer, model_digest
from msif.study import paths
from msif.study.beds import testbed
from msif.study.corpora.webnlg import (
    FILES,
    REPEATED,
    bpe_tokenizer,
    chance,
    read_texts,
    readable,
    relation_to,
    start_model,
    started,
    traps,
    webnlg_corpus,
    words,
)

DATA = paths.root() / "data"
needs_data = pytest.mark.skipif(
    not all((DATA / file).is_file() for file in FILES),
    reason="no WebNLG in data/webnlg: the README says what to put there",
)
NAMES = "Aba Bec Cid Dov Eno Fil Gur Hob Ivo Jun Kip Lom".split()
SMALL = dict(held_out=5, statements=4, documents_per_fact=4, others=3)


def entry(number, triples, texts, split="train"):
    return dict(
        id=f"{split}/{number}", category="City", size=len(triples), triples=triples, texts=texts
    )


def write(folder, rows):
    (folder / "webnlg").mkdir(parents=True)
    for file in FILES:
        lines = [
            json.dumps(row, ensure_ascii=False)
            for row in rows
            if file.startswith(f"webnlg/{row['id'].split('/')[0]}")
        ]
        (folder / file).write_text("".join(line + "\n" for line in lines), "utf-8")
    return folder


def miniature():
    """Twelve towns with a leader and a river each; one has two leaders, one is named in its river,
    some texts state both."""
    rows = []
    for n, name in enumerate(NAMES):
        leader, river = f'"Leader{n}"@en', f"River{n}_(water)" if name != "Lom" else "Lom_water"
        stated = {"leaderName": (leader, f"Leader{n}"), "riverBank": (river, readable(river))}
        for p, (o, spelt) in stated.items():
            rows.append(
                entry(
                    f"{name}-{p}",
                    [[f"{name}_town", p, o]],
                    [
                        f"{name} town {verb} {spelt}, {n} é."
                        for verb in ("has", "knows", "praises", "honours", "likes")
                    ],
                )
            )
        rows.append(
            entry(
                f"{name}-both",
                [[f"{name}_town", p, o] for p, (o, _) in stated.items()],
                [f"{name} town has Leader{n} and {readable(river)}."],
                "dev",
            )
        )
        rows.append(
            entry(
                f"{name}-area",
                [[f"{name}_town", "area", f"{n}.5"]],
                [f"Nobody measured {name} town.", "All towns are old."],
                "test",
            )
        )
    return rows + [
        entry(
            "Aba-again", [["Aba_town", "leaderName", "Other"]], ["Aba town has Other now."], "test"
        )
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), miniature())


@pytest.fixture(scope="module")
def corpus(folder):
    return webnlg_corpus(folder, **SMALL)


@pytest.fixture(scope="module")
def real():
    return webnlg_corpus(DATA)


def fact(row):
    return [row["subject"], row["relation"], row["object"]]


def check_stages(corpus):
    """No subject of a query is asked about or answered in fine-tuning;
    every property of a query is asked about there."""
    hidden = {q["subject"] for q in corpus.queries}
    assert not hidden & {
        x for row in corpus.finetuning for x in (row["subject"], row["object"], row["answer"])
    }
    assert {q["relation"] for q in corpus.queries} <= {row["relation"] for row in corpus.finetuning}


def check_proponents(corpus, statements):
    """Proponents are all documents with the query's triple,
    and no document gives its subject and property another object."""
    annotated, objects = defaultdict(list), defaultdict(set)
    for n, d in enumerate(corpus.documents):
        for s, p, o in d["triples"]:
            annotated[s, p, o].append(n)
            objects[s, p].add(o)
    for query in corpus.queries:
        s, p, o = fact(query)
        assert (
            query["proponents"] == annotated[s, p, o]
            and len(query["proponents"]) >= statements
            and objects[s, p] == {o}
        )
        assert all(corpus.documents[n]["kind"] == "statement" for n in query["proponents"])


def test_fine_tuning_holds_no_fact_of_a_queried_subject(corpus):
    assert corpus.queries and corpus.finetuning
    check_stages(corpus)


def test_proponents_are_exactly_the_documents_annotated_with_the_triple(corpus):
    check_proponents(corpus, SMALL["statements"])


def test_ambiguous_objects_and_those_named_in_their_subject_are_never_asked_about(folder):
    for seed in range(5):
        found = webnlg_corpus(folder, seed, **SMALL)
        asked = {(row["subject"], row["relation"]) for row in found.queries + found.finetuning}
        assert not asked & {("Aba town", "leader name"), ("Lom town", "river bank")}
        # stated in no text letter by letter
        assert all(row["relation"] != "area" for row in found.queries + found.finetuning)


def test_documents_are_texts_of_the_files_with_their_annotation_and_kind(folder, corpus):
    texts = {row["text"]: row for row in read_texts(folder)}
    queried, asked = ([fact(row) for row in rows] for rows in (corpus.queries, corpus.finetuning))
    assert len({d["text"] for d in corpus.documents}) == len(corpus.documents)
    for d in corpus.documents:
        assert d["triples"] == texts[d["text"]]["triples"] and d["size"] == len(d["triples"])
        fits = [
            any(t in queried for t in d["triples"]),
            any(t in asked for t in d["triples"]),
            True,
        ]
        assert d["kind"] == ("statement", "asked", "other")[fits.index(True)]
    assert sum(d["kind"] == "other" for d in corpus.documents) == SMALL["others"]


def test_the_corpus_depends_on_the_seed_alone(folder, corpus):
    assert webnlg_corpus(folder, **SMALL) == corpus != webnlg_corpus(folder, seed=1, **SMALL)


def test_a_text_of_several_entries_states_the_triples_of_all(folder):
    old = [row for row in read_texts(folder) if row["text"] == "All towns are old."]
    assert len(old) == 1 and len(old[0]["triples"]) == len(NAMES)


def test_documents_are_told_apart_as_one_query_sees_them():
    query = dict(subject="Aba", relation="leader", object="Bo", answer="Bo")
    texts = {
        "states": [["Aba", "leader", "Bo"], ["Cid", "leader", "Dov"]],
        "same subject": [["Aba", "river", "Bo"]],
        "same object": [["Cid", "leader", "Bo"]],
        "same property": [["Cid", "leader", "Dov"]],
        "other": [["Cid", "river", "Dov"]],
    }
    assert all(relation_to(query, dict(triples=triples)) == name for name, triples in texts.items())
    documents = [
        dict(text=text, triples=texts[name])
        for text, name in (
            ("Bo leads Aba.", "states"),
            ("bo swims, says Aba.", "same subject"),
            ("Abacus of Bo.", "other"),
            ("Aba slept.", "same subject"),
        )
    ]
    assert traps(query, documents) == [1]


def test_chance_is_the_most_frequent_answer_to_the_property():
    row = lambda relation, answer: dict(relation=relation, answer=answer)
    corpus = type(
        "Rows",
        (),
        dict(
            finetuning=[row("a", "x"), row("a", "x"), row("a", "y"), row("b", "z")],
            queries=[row("a", "x"), row("a", "y"), row("b", "z"), row("c", "x")],
        ),
    )
    assert chance(corpus) == 0.5


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ("A_Suárez_Airport", "A Suárez Airport"),
        ('"Tirstrup"@en', "Tirstrup"),
        ("Nord_(album)", "Nord"),
        ("(66063)", "(66063)"),
        ('"1732.0"^^<http://www.w3.org/2001/XMLSchema#double>', "1732.0"),
        ('"10,  14/3"', "10, 14/3"),
    ],
)
def test_entities_and_literals_become_readable(raw, wanted):
    assert readable(raw) == wanted


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ("leaderName", "leader name"),
        ("ISBN_number", "isbn number"),
        ("band/artist", "band or artist"),
        ("elevationAboveTheSeaLevel_(in_metres)", "elevation above the sea level"),
    ],
)
def test_properties_become_words(raw, wanted):
    assert words(raw) == wanted


def test_the_tokenizer_reads_every_text_back_and_keeps_to_its_pieces(corpus):
    tokenizer = bpe_tokenizer(corpus, 300)
    assert 257 < len(tokenizer) <= 300
    for text in [d["text"] for d in corpus.documents] + [
        "Ümläut — 東京, (66063)  two spaces\n",
        "word.",
    ]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == " " + text
    assert (
        tokenizer("Aba town")["input_ids"]
        == tokenizer("is Aba town")["input_ids"][-len(tokenizer("Aba town")["input_ids"]) :]
    )
    assert bpe_tokenizer(corpus, 300).get_vocab() == tokenizer.get_vocab()


def test_the_start_is_a_model_that_the_test_bed_trains_on(corpus, tmp_path):
    first, again, other = (
        start_model(
            tmp_path / str(n),
            corpus,
            pieces=300,
            width=16,
            heads=2,
            layers=1,
            context=48,
            seed=seed,
        )
        for n, seed in enumerate((0, 0, 1))
    )
    assert (
        model_digest(load_model(first))
        == model_digest(load_model(again))
        != model_digest(load_model(other))
    )
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    assert limits(load_model(first)) == (len(load_tokenizer(first)), 48)
    training = dict(epochs=2, rate=3e-3, batch_size=16)
    testbed.build(
        tmp_path / "bed",
        corpus,
        model={"source": str(first)},
        pretraining=training,
        finetuning=training,
        max_length=48,
    )
    bed = testbed.load(tmp_path / "bed")
    assert bed.history["pretraining"][1] < bed.history["pretraining"][0]
    assert len(testbed.answers(bed.model("finetuned"), bed.tokenizer, corpus.queries)) == len(
        corpus.queries
    )


def test_a_start_is_made_once_for_its_corpus_and_settings(folder, corpus, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    settings = dict(pieces=300, width=16, heads=2, layers=1, context=48)
    first = started(corpus, **settings)
    changed = Path(first["source"]).stat().st_mtime_ns
    assert (
        started(corpus, **settings) == first and Path(first["source"]).stat().st_mtime_ns == changed
    )
    assert limits(load_model(**first))[1] == 48
    others = (
        started(corpus, seed=1, **settings),
        started(corpus, **settings | dict(width=32)),
        started(webnlg_corpus(folder, seed=1, **SMALL), **settings),
    )
    assert len({start["source"] for start in (first, *others)}) == 4


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(held_out=12), "held_out is 12"),
        (dict(held_out=0), "held_out is 0"),
        (dict(statements=2), "statements is 2"),
        (dict(triples=8), "triples is 8"),
        (dict(documents_per_fact=3), "documents_per_fact is 3"),
        (dict(others=-1), "others is -1"),
    ],
)
def test_impossible_numbers_are_refused_by_name_and_range(folder, settings, named):
    with pytest.raises(ValueError, match=f"{named}; expected [0-9]+ to [0-9]+"):
        webnlg_corpus(folder, **SMALL | settings)


def test_data_that_leave_nothing_to_ask_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="statements is 7, and 0 subjects"):
        webnlg_corpus(folder, **SMALL | dict(statements=7, documents_per_fact=7))
    own = [
        row | dict(triples=[[s, f"{p}Of{s}", o] for s, p, o in row["triples"]])
        for row in miniature()
    ]
    with pytest.raises(ValueError, match="held_out is 5, and no fact"):
        webnlg_corpus(write(tmp_path, own), **SMALL)


def test_a_tokenizer_needs_a_piece_for_every_byte(corpus):
    with pytest.raises(ValueError, match="pieces is 256; expected 257"):
        bpe_tokenizer(corpus, 256)


def test_missing_data_says_what_to_put_where_and_under_which_licence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        webnlg_corpus(tmp_path / "data")
    for part in (str(tmp_path / "data"), *FILES, "WebNLG 1.6", "CC BY-NC-SA 4.0", "https://"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": 1, "category": "x", "texts": []}',
        '{"id": 1, "category": "x", "texts": [], "triples": [["a", "b"]]}',
    ],
)
def test_a_broken_line_is_named(folder, tmp_path, line):
    broken = write(tmp_path, miniature())
    (broken / FILES[1]).write_text((folder / FILES[1]).read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(ValueError, match=rf"dev.jsonl, line {len(NAMES) + 1}: .*expected"):
        read_texts(broken)


@needs_data
def test_the_real_corpus_keeps_the_laws(real):
    check_stages(real)
    check_proponents(real, statements=6)
    assert len(real.queries) >= 200 and len({q["subject"] for q in real.queries}) >= 100
    assert chance(real) < 0.1
    repeated = [(q["relation"], q["answer"]) for q in real.queries]
    assert max(map(repeated.count, repeated)) <= REPEATED


@needs_data
def test_real_texts_are_read_whole_in_few_pieces(real):
    tokenizer = bpe_tokenizer(real)
    assert len(tokenizer) <= 4096
    texts = [d["text"] for d in real.documents]
    assert encode_documents(texts, tokenizer, 128) == encode_documents(texts, tokenizer, 10_000)
    assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == " " + text for text in texts[:500])
    for rows in (real.finetuning, real.queries):
        encode_answers([r["prompt"] for r in rows], [r["answer"] for r in rows], tokenizer, 128)
