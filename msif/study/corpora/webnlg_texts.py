"""The texts of WebNLG 1.6, and the facts in them that can be asked about.

People wrote every text to state one to seven triples (subject, property, object).
"""

import json
import re
from collections import defaultdict
from pathlib import Path

FILES = [f"webnlg/{split}.jsonl" for split in ("train", "dev", "test")]
LAYOUT = f"""
    {", ".join(FILES)}: WebNLG 1.6, English, converted from the XML entries of
        data/v1.6/en in https://github.com/ThiagoCF05/webnlg to a {{"id", "category", "size", \
"triples":
        [[subject, property, object], ...], "texts": [text, ...]}} a line; CC BY-NC-SA 4.0"""
# Texts that state an asked fact; of a query's, texts that name the subject before the object.
LEAST = 3
LETTERS, WORDS = 20, 3  # the most of an answer
VERBATIM = 0.6  # share of a fact's texts that hold the answer letter by letter


def read_texts(folder):
    """All texts of folder/webnlg, each once: dicts with text, entry, category and triples, cleaned.

    The triples of a text that belongs to several entries are put together. Raises as
    `webnlg.webnlg_corpus`.
    """
    if missing := [name for name in FILES if not (Path(folder) / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. Put there, as files or links:{LAYOUT}"
        )
    found = {}
    for name in FILES:
        for number, line in enumerate((Path(folder) / name).read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                triples = [[readable(s), words(p), readable(o)] for s, p, o in row["triples"]]
                for text in map(_one_line, row["texts"]):
                    new = dict(text=text, entry=row["id"], category=row["category"], triples=[])
                    here = found.setdefault(text, new)
                    here["triples"] += [t for t in triples if t not in here["triples"]]
            except (ValueError, KeyError, TypeError) as error:
                cause = f"{type(error).__name__} {error}"
                raise ValueError(
                    f"{folder}/{name}, line {number}: {cause}; expected{LAYOUT}"
                ) from error
    return [row for text, row in found.items() if text]


def readable(value):
    """An entity or literal as people would write it.

    It has no underscores, quotes, types, languages or bracketed remarks.
    """
    value = re.sub(r'(?<=")(\^\^.*|@\w+)$', "", value.strip()).strip('"').replace("_", " ")
    return _one_line(re.sub(r"\([^)]*\)", " ", value)) or _one_line(value)


def words(name):
    """The words of a property: leaderName → leader name, elevation_(in_metres) → elevation."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", readable(name)).replace("/", " or ").lower()


def _one_line(text):
    return " ".join(text.split())


def facts_of(texts, most):
    """Facts that can be asked about, in alphabetical order.

    Each has a triple's subject, relation and object, how its texts spell the object (answer), their
    numbers (texts), how many of them name the subject before the object (forward), and the category
    of the first.
    """
    objects, stating = defaultdict(set), defaultdict(list)
    for number, row in enumerate(texts):
        for s, p, o in row["triples"]:
            objects[s, p].add(o)
            if len(row["triples"]) <= most:
                stating[s, p, o].append(number)
    plain = [t for t in sorted(stating) if len(objects[t[:2]]) == 1 and len(stating[t]) >= LEAST]
    facts = [
        dict(
            subject=s,
            relation=p,
            object=o,
            texts=stating[s, p, o],
            answer=_spelling(o, [texts[n]["text"] for n in stating[s, p, o]]),
        )
        for s, p, o in plain
    ]
    facts = [f for f in facts if f["answer"] and not _bare(f["subject"]) & _bare(f["answer"])]

    def forward(fact):
        stating = [texts[n]["text"] for n in fact["texts"]]
        subject, answer = fact["subject"], fact["answer"]
        return sum(0 <= place(subject, text) < place(answer, text) for text in stating)

    def category(fact):
        return texts[fact["texts"][0]]["category"]

    return [f | dict(forward=forward(f), category=category(f)) for f in facts]


def _spelling(value, texts):
    """The longest form of an object that is short and stands in most of `texts`, or None.

    Its forms: as it is, the place without its region, the number without its zeros or with commas.
    """
    forms = [value, value.split(",")[0]]
    if number := re.fullmatch(r"(\d+)(\.\d+)?", value):
        forms += [value.removesuffix(".0"), f"{int(number[1]):,}"]
    short = [form for form in forms if 0 < len(form) <= LETTERS and len(form.split()) <= WORDS]
    usual = VERBATIM * len(texts)
    good = [form for form in short if sum(form in text for text in texts) >= usual]
    return max(good, key=len, default=None)


def _bare(text):
    return set(re.findall(r"\w+", text.lower()))


def triple(row):
    """(subject, relation, object) of a fact, a query or a fine-tuning row."""
    return row["subject"], row["relation"], row["object"]


def place(part, text):
    """Where `part` stands in `text` as whole words, in any case; -1 where it does not."""
    found = re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text, re.IGNORECASE)
    return found.start() if found else -1
