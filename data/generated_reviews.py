"""Made-up film reviews: this script writes generated_reviews.txt, from generated_reviews.toml.

A review is one verdict, up to three remarks that agree with it, and sentences that judge nothing.
It is hard in the ways in which real reviews are: opinions are negated ("never dull"), weighed
("although the acting is superb, the story is a mess") or somebody else's ("the critics called it
terrible, and I cannot see why"); the verdict may stand far from the end; the plot, too, has
terrible secrets and charming clerks; and most words are names that hardly ever come again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
RULES = tomllib.loads((HERE / "generated_reviews.toml").read_text("utf-8"))
RULES["words"]["any"] = " ".join(words for side in RULES["adjectives"] for words in side)


def pick(rng: Random, items: str | Sequence[Any]) -> Any:
    """One of the items, or of the words of a text."""
    # of a seed's draws, Python promises to keep those of `random()` alone
    items = items.split() if isinstance(items, str) else items
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Sequence[str]) -> list[str]:
    """The items in random order."""
    return sorted(items, key=lambda _: rng.random())


def fill(rng: Random, template: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """The template with every {slot} replaced by one of the slot's words, filled in its turn."""
    return re.sub(r"\{(\w+)\}", lambda slot: fill(rng, pick(rng, words[slot[1]]), words), template)


def make_opinion(rng: Random, label: int, degree: int, subjects: Sequence[str]) -> str:
    """A sentence that judges one of the subjects, from mildly (`degree` 1) to strongly (4)."""
    adjectives, nouns, adverbs = (RULES[key] for key in ("adjectives", "nouns", "adverbs"))
    strong, theirs = int(degree > 2), int(rng.random() < 0.5)
    ours = adjectives[label][strong].split()
    if degree in (1, 4) and rng.random() < 0.6:
        ours = [f"{pick(rng, adverbs[strong])} {word}" for word in ours]
    words = {
        **RULES["words"],
        "subject": subjects,
        "ours": ours,
        "our_noun": nouns[label][strong],
        "theirs": adjectives[1 - label][theirs],
        "their_noun": nouns[1 - label][theirs],
    }
    shares = RULES["degrees"][degree - 1]["shares"]
    kind = pick(rng, [kind for kind, share in shares.items() for _ in range(share)])
    return fill(rng, pick(rng, RULES["opinions"][kind]), words)


def make_review(rng: Random, label: int) -> tuple[str, int]:
    """The text of a review and its rating: 1 to 4 for label 0, 7 to 10 for label 1."""
    words, degree = RULES["words"], 1 + int(4 * rng.random())  # how far from the middle it is
    verdict = make_opinion(rng, label, degree, words["film"])
    counts = RULES["degrees"][degree - 1]["remarks"]
    subjects = shuffled(rng, words["tale"])[: pick(rng, counts)]
    remarks = [make_opinion(rng, label, degree, [subject]) for subject in subjects]
    lines = shuffled(rng, words["neutral"])[: pick(rng, RULES["neutral_sentences"])]
    neutral = [fill(rng, line, words) for line in lines]

    # the verdict opens the review, closes it, or stands somewhere among the rest
    sentences = [verdict, *remarks, *neutral]
    if (layout := pick(rng, ("first", "first", "last", "among"))) == "last":
        sentences = [*neutral, *remarks, verdict]
    elif layout == "among":
        sentences = shuffled(rng, sentences)
    return tidy(rng, sentences), 6 + degree if label else 5 - degree


def tidy(rng: Random, sentences: Sequence[str]) -> str:
    """The sentences as one text, with capital letters, "an", and the untidiness of real reviews."""
    text = ""
    for sentence in sentences:
        sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence[0].upper() + sentence[1:])
        if rng.random() < 0.04:
            sentence = sentence.upper()
        if rng.random() < 0.15:
            sentence = sentence[:-1] + pick(rng, ("!", "!!", "...", " ."))
        text += (pick(rng, (" ", " ", " ", "<br /><br />")) if text else "") + sentence
    return text


def make_corpus(num_train: int = 2000, num_test: int = 1000, seed: int = 0) -> str:
    """A line for each review, half of them negative; by default no two reviews are alike."""
    rng, lines = Random(seed), []
    for part, count in (("train", num_train), ("test", num_test)):
        for number in range(count // 2):
            for label, kind in enumerate(("neg", "pos")):
                text, rating = make_review(rng, label)
                lines.append(f"{part}/{kind}/{number}_{rating}.txt\t{text}\n")
    return "".join(lines)


if __name__ == "__main__":
    (HERE / "generated_reviews.txt").write_text(make_corpus(), "utf-8", newline="\n")
