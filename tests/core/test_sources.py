"""What is read is the file that was asked for, whole, as it is now, row by row."""

import json
import os
import warnings

import pytest
import support.laws  # noqa: F401  # before hypothesis is used
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers_of_kinds import byte_level

from msif.core.data import encode_documents
from msif.core.sources import load_rows, load_texts
from msif.scale.streaming import tokenised

TEXTS = [
    "the cat sat on the mat .",
    "a dog barked .",
    "the bird sang all day long in the old tree .",
]


WRITTEN = st.lists(st.text(max_size=30), min_size=1, max_size=8).filter(
    lambda texts: any(text.strip() for text in texts)
)
LINES = WRITTEN.map(lambda texts: [text.replace("\r", "").replace("\n", "") for text in texts])


def jsonl(path, rows, **options):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows), "utf-8")
    return path


def parquet(path, **columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def files(tmp_path):
    """The same texts in every format, and in a folder."""
    rows = [{"text": text, "number": n} for n, text in enumerate(TEXTS)]
    parquet(tmp_path / "a.parquet", text=TEXTS, number=[0, 1, 2])
    jsonl(tmp_path / "a.jsonl", rows)
    jsonl(tmp_path / "folder" / "train.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    return tmp_path


SOURCES = ["a.jsonl", "a.json", "a.parquet", "a.txt", "folder"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_format_gives_the_same_texts_streamed_or_not(files, source):
    assert load_texts(files / source) == TEXTS
    assert load_texts(files / source, limit=2) == TEXTS[:2]
    streamed = load_texts(files / source, streaming=True, limit=2)
    assert not isinstance(streamed, list) and list(streamed) == TEXTS[:2]


@given(WRITTEN, st.booleans())
def test_any_text_comes_back_as_it_was_written(tmp_path_factory, texts, escaped):
    folder = tmp_path_factory.mktemp("written")
    rows = [{"text": text, "x": 1} for text in texts]
    made = [
        jsonl(folder / "a.jsonl", rows, ensure_ascii=escaped),
        parquet(folder / "a.parquet", text=texts, x=texts),
        folder / "a.json",
    ]
    made[-1].write_text(json.dumps(rows, indent=2, ensure_ascii=escaped), "utf-8")
    for path in made:
        assert load_texts(path) == list(load_texts(path, streaming=True)) == texts
        assert load_rows(path, ["text"]) == [{"text": text} for text in texts]


@given(LINES.filter(lambda texts: any(text.strip() for text in texts)), st.sampled_from("nrR"))
def test_a_line_of_text_ends_where_the_line_ends(tmp_path_factory, texts, end):
    """Not at a form feed, a vertical tab, a next line or a line separator."""
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    ends = {"n": "\n", "r": "\r\n", "R": "\r"}[end]
    path.write_bytes("".join(text + ends for text in texts).encode())
    found = load_texts(path)
    assert found == [text.removeprefix("\ufeff") for text in texts[:1]] + texts[1:]
    assert found == list(load_texts(path, streaming=True))


@given(st.lists(st.sampled_from(["", "  ", "\t", "a b c", "b c", "dog"]), min_size=1, max_size=12))
def test_a_documents_number_is_its_row(tmp_path_factory, texts):
    """Blank rows and rows of one token are no documents, and count."""
    tokenizer = byte_level(TEXTS)
    if not any(text.strip() for text in texts):
        return
    path = parquet(tmp_path_factory.mktemp("rows") / "a.parquet", text=texts)
    listed = encode_documents(load_texts(path), tokenizer, 9)
    streamed = list(tokenised(load_texts(path, streaming=True), tokenizer, 9))
    for documents in (listed, streamed):
        assert {x.index: tokenizer.decode(x.input_ids) for x in documents} == {
            n: text for n, text in enumerate(texts) if text.strip()
        }


def test_columns_are_read_together_row_by_row(tmp_path):
    """Blanks shift nothing."""
    rows = [("  ", "A0"), ("P1", "A1"), ("P2", ""), ("P3", None)]
    path = jsonl(tmp_path / "r.jsonl", [{"prompt": p, "answer": a} for p, a in rows])
    found = load_rows(path, ["prompt"], ["answer"])
    assert [(x["prompt"], x["answer"]) for x in found] == rows
    assert load_texts(path, "prompt") == ["  ", "P1", "P2", "P3"]


def test_a_name_is_no_pattern(tmp_path):
    for name in ("corpus[1].jsonl", "x*.jsonl", "y?.jsonl", "{a,b}.jsonl"):
        path = jsonl(tmp_path / name, [{"text": "asked for"}])
        for other in ("corpus1.jsonl", "xy.jsonl", "yy.jsonl", "a.jsonl"):
            jsonl(tmp_path / other, [{"text": "another"}])
        assert load_texts(path) == list(load_texts(path, streaming=True)) == ["asked for"]
    jsonl(tmp_path / "c[1]" / "a.jsonl", [{"text": "asked for"}])
    jsonl(tmp_path / "c1" / "a.jsonl", [{"text": "another"}])
    assert load_texts(tmp_path / "c[1]") == ["asked for"]


def test_a_file_is_read_as_it_is_now(tmp_path):
    """Edited within the same tick of the clock, to the same size."""
    for before, now in (("one two", "two one"), ("two one", "1ne two")):
        path = jsonl(tmp_path / "a.jsonl", [{"text": before}])
        os.utime(path, (1, 1))
        assert load_texts(path) == [before]
        jsonl(path, [{"text": now}])
        os.utime(path, (1, 1))
        assert load_texts(path) == list(load_texts(path, streaming=True)) == [now]


def test_a_date_stays_text_and_a_mark_of_byte_order_is_no_text(tmp_path):
    dates = ["2020-01-01T10:00:00", "2020-01-02T10:00:00Z", "2020-01-01"]
    assert load_texts(jsonl(tmp_path / "a.jsonl", [{"text": x} for x in dates])) == dates
    for name, content in (("b.txt", "Ada\nBo\n"), ("b.jsonl", '{"text": "Ada"}\n{"text": "Bo"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert load_texts(tmp_path / name) == ["Ada", "Bo"]
    jsonl(tmp_path / "c.JSONL", [{"text": "Ada"}])
    assert load_texts(tmp_path / "c.JSONL") == ["Ada"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "Ada\ncafé\n".encode("latin-1"), "a.txt, line 2 is not UTF-8 at character 3"),
        ("a.txt", "Ada\n".encode("utf-16"), "a.txt, line 1 is not UTF-8"),
        ("a.jsonl", '{"text": "café"}\n'.encode("latin-1"), "a.jsonl, line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n["b"]', "a.jsonl, line 3 is .*expected an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}', "row 1: 'text' is None; expected text"),
        ("a.jsonl", b'{"text": "a"}\n{"x": 1}', r"no column 'text'; its columns are x \(in row 1"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a \\ud83d x"}', "row 1: 'text' has '.ud83d' at cha"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json, row 1 is 3; expected an object"),
        ("a.parquet", b"PAR1 no parquet PAR1", "a.parquet cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_by_file_and_place(
    tmp_path, name, content, message, streaming
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(load_texts(tmp_path / name, streaming=streaming))


def test_a_folder_is_read_whole_or_refused(tmp_path):
    folder = tmp_path / "folder"
    jsonl(folder / "b.jsonl", [{"text": "2"}])
    jsonl(folder / "a.jsonl", [{"text": "0"}, {"text": "1"}])
    jsonl(folder / "test.jsonl", [{"text": "held out"}])
    jsonl(folder / ".hidden.jsonl", [{"text": "no"}])
    (folder / "README.md").write_text("# Texts\n")
    with pytest.warns(UserWarning, match=r"1 of 3 files are of other splits .*\(test.jsonl\)"):
        assert load_texts(folder) == ["0", "1", "2"]
    with warnings.catch_warnings(action="error"):  # asked for
        assert load_texts(folder, split="test") == ["held out"]
    with pytest.raises(ValueError, match="no split 'validation'.* there are test, train"):
        load_texts(folder, split="validation")
    for name in ("c.txt", "c.csv", "c.jsonl.gz", "c.parquet"):
        (folder / name).write_text("x")
        with pytest.raises(ValueError, match="files of several formats .*jsonl"):
            load_texts(folder)
        (folder / name).unlink()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n- config_name: b\n---\n")
    with pytest.raises(ValueError, match=r"several configurations \(a, b\)"):
        load_texts(folder)


def test_a_folder_has_what_its_links_lead_to(tmp_path):
    folder, other = tmp_path / "corpus", tmp_path / "other"
    folder.mkdir(), other.mkdir()
    jsonl(folder / "a.jsonl", [{"text": "a"}])
    jsonl(other / "b.jsonl", [{"text": "b"}])
    (folder / "more").symlink_to(other)
    (folder / "z.jsonl").symlink_to(other / "b.jsonl")
    assert load_texts(folder) == ["a", "b", "b"]
    (folder / "gone.jsonl").symlink_to(other / "c.jsonl")
    with pytest.raises(FileNotFoundError, match="gone.jsonl is a link to .*c.jsonl"):
        load_texts(folder)
    (folder / "gone.jsonl").unlink()
    (other / "round").symlink_to(folder)
    with pytest.raises(ValueError, match="round is a link to a folder that it lies in"):
        load_texts(folder)


@pytest.mark.parametrize("name", ["b.ndjson", "b.jsonlines", "b.feather", "b.jsonl.part"])
def test_a_folder_with_data_of_an_unread_kind_is_refused(tmp_path, name):
    jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / name).write_text('{"text": "b"}')
    with pytest.raises(ValueError, match="several formats"):
        load_texts(tmp_path)


def test_a_key_or_column_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="a.jsonl, line 2 has the key 'text' twice"):
        load_texts(tmp_path / "a.jsonl")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="several columns 'text'"):
        load_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_refused_and_the_columns_named(files, streaming):
    with pytest.raises(ValueError, match="no column 'story'; its columns are number, text"):
        load_texts(files / "a.jsonl", column="story", streaming=streaming)
    with pytest.raises(ValueError, match="row 0: 'number' is 0; expected text"):
        list(load_texts(files / "a.jsonl", column="number", streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name, content", [("b.jsonl", ""), ("b.txt", ""), ("b.txt", "\n \n")])
def test_an_empty_corpus_is_refused(files, name, content, streaming):
    (files / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.* empty"):
        load_texts(files / name, streaming=streaming)


def test_an_empty_parquet_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"b.parquet .*is empty"):
        load_texts(parquet(tmp_path / "b.parquet", text=[]))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing doesn't contain any data files"):
        load_texts(tmp_path / "nothing")


@pytest.mark.parametrize("source", ["missing.jsonl", "missing", "a text"])
def test_a_missing_path_is_refused_without_asking_the_hub(files, source):
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
        load_texts(files / source)


@pytest.mark.parametrize("source", ["Ada was born", "a/b/c", "./a", "~/a", "a.jsonl"])
def test_what_is_no_path_and_no_id_is_not_looked_for_on_the_hub(source):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a file, a folder or"):
        load_texts(source)


def test_unknown_format_split_and_limit_are_refused(files):
    (files / "a.csv").write_text("text\nhello\n")
    with pytest.raises(ValueError, match="a.csv is not a known format; expected .jsonl"):
        load_texts(files / "a.csv")
    with pytest.raises(ValueError, match="validation"):
        load_texts(files / "folder", split="validation")
    for wrong in (0, -1, 2.5, "3", True):
        with pytest.raises(ValueError, match="limit is .*; expected a whole number"):
            load_texts(files / "a.txt", limit=wrong)
        with pytest.raises(ValueError, match="limit is .*; expected a whole number"):
            load_rows(files / "a.txt", ["text"], limit=wrong)
