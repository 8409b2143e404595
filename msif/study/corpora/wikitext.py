"""WikiText as it is published: articles of Wikipedia in one file, cut into words by spaces.

A line is a paragraph or a heading; one heading of the first level, " = Title = ", begins each
article. Rare words are <unk> there, and stay so.
"""

import re
from pathlib import Path

WORDS = 30  # a paragraph of fewer is a caption, a list's entry or a line of a table
LAYOUT = 'WikiText\'s text files, as they are published: " = Title = " begins an article'
_HEADING = re.compile(r"((?:= )+)(.+?)((?: =)+)")


def files(source, pattern):
    """The paths of `source` (a folder) that match `pattern`, by name.

    Raises FileNotFoundError, saying what belongs there, where there is none."""
    found = sorted(Path(source).glob(pattern))
    if not found:
        raise FileNotFoundError(f"{source} has no {pattern}: put there {LAYOUT}")
    return found


def paragraphs(source, pattern):
    """[{"title": "Article, Section", "text"}] of the files' paragraphs of at least `WORDS` words,
    in their order and in plain spelling (`spelled`). Raises as `files` does."""
    found = []
    for path in files(source, pattern):
        place = []
        for line in path.read_text("utf-8").splitlines():
            if heading := _HEADING.fullmatch(line.strip()):
                level = heading[1].count("=")
                place = [*place[: level - 1], spelled(heading[2])]
            elif len(line.split()) >= WORDS:
                found.append({"title": ", ".join(place), "text": spelled(line)})
    return found


def spelled(text):
    """WikiText's words as a person writes them: "0 @.@ 7 , say ( 1 )" -> "0.7, say (1)"."""
    text = re.sub(r" @(.)@ ", r"\1", text.strip())
    text = re.sub(r'(^| )" (.*?) "(?= |$)', r'\1"\2"', text)
    text = re.sub(r" ([,.;:!?%)\]]|'s\b|'(?= |$)|n't\b|'t\b)", r"\1", text)
    return re.sub(r"([(\[$£€]) ", r"\1", text)
