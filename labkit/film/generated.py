"""Made-up film reviews, written by rule: what the quick profile reads in place of real ones.

A review is one verdict, up to three remarks that agree with it, and sentences that judge nothing.
It is hard in the ways in which real reviews are: opinions are negated ("never dull"), weighed
("although the acting is superb, the story is a mess") or somebody else's ("the critics called it
terrible, and I cannot see why"); the verdict may stand far from the end; the plot, too, has
terrible secrets and charming clerks; and most words are names that hardly ever come again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Review:
    """One review, made up or real; `rating` is 1 to 4 for label 0 and 7 to 10 for label 1."""

    part: str  # "train" or "test"
    label: int  # 0 negative, 1 positive
    number: int
    rating: int
    text: str


def _listed(text: str) -> tuple[str, ...]:
    """The words of a line, for word lists that take one."""
    return tuple(text.split())


# what opinions are made of: mild and strong words of label 0 and label 1
ADJECTIVES = (
    (
        _listed("weak dull flat clumsy bland tired tedious forgettable shallow bad"),
        _listed("dreadful awful terrible atrocious unbearable hopeless appalling wretched"),
    ),
    (
        _listed("good decent pleasant charming solid engaging likeable entertaining clever fine"),
        _listed("wonderful superb brilliant magnificent gripping dazzling unforgettable perfect"),
    ),
)
NOUNS = (
    (_listed("bore disappointment letdown"), _listed("disaster mess catastrophe")),
    (_listed("pleasure success surprise"), _listed("masterpiece triumph delight")),
)
HEDGES = ("rather", "fairly", "somewhat", "quite")
BOOSTERS = ("utterly", "absolutely", "truly", "completely")

# {ours} agrees with the label, {theirs} does not; the same templates serve both labels
OPINIONS = {
    "plain": (
        "{subject} is {ours}.",
        "I found {subject} {ours}.",
        "{subject} is {ours}, and so is {detail}.",
        "{subject} is a {our_noun}.",
        "{subject} and {detail} are {ours}.",
        "To me {subject} was {ours} from the first minute to the last.",
    ),
    "negated": (
        "{subject} is not {theirs}.",
        "{subject} isn't {theirs} at all.",
        "{subject} is never {theirs}.",
        "{subject} is hardly ever {theirs}.",
        "{subject} is not a {their_noun}.",
        "There is nothing {theirs} about {subject}.",
        "I can't call {subject} {theirs}.",
    ),
    "contrast": (
        "Although {detail} is {theirs}, {subject} is {ours}.",
        "{detail} is {theirs}, but {subject} is {ours}.",
        "{subject} is {ours}, although {detail} is {theirs}.",
        "Despite {detail}, which is {theirs}, {subject} is a {our_noun}.",
        "Yes, {detail} is {theirs}, but {subject} is a {our_noun}.",
    ),
    "reported": (
        "I expected a {their_noun}, but {subject} is {ours}.",
        "The critics called {subject} {theirs}, and I cannot see why.",
        "My {friend} told me that {subject} is {theirs}, but I found it {ours}.",
        "Those who call {subject} {theirs} must have seen another film.",
    ),
}

# per cent of each kind, by how far the rating is from the middle: from 1 (4 or 7) to 4 (1 or 10)
SHARES = {
    1: {"plain": 66, "negated": 14, "contrast": 14, "reported": 6},
    2: {"plain": 70, "negated": 14, "contrast": 10, "reported": 6},
    3: {"plain": 72, "negated": 10, "contrast": 12, "reported": 6},
    4: {"plain": 76, "negated": 10, "contrast": 8, "reported": 6},
}
REMARKS = {1: (0, 1, 1), 2: (1, 1, 2), 3: (1, 1, 2), 4: (2, 2, 3)}
LENGTHS = (1, 1, 1, 2, 2, 3, 4, 7)  # how many sentences judge nothing

NEUTRAL = (
    "{person} plays a {job} who comes to {place} to look for a lost {thing}.",
    "{person} plays a {job} with a {any} secret.",
    "The story begins in {year}, when a {job} finds a {thing} near the {spot}.",
    "Nobody in {place} knows where the {thing} is, but the {job} does not give up.",
    "The film was made in {place} with a small crew and not much money.",
    "{person} directed it, {person} wrote the script, and {person} composed the music.",
    "I saw it on a {day} evening with my {friend} and about {number} other people.",
    "The {job}'s {friend} is played by {person}, who was also in {title}.",
    "It runs for {number} minutes and is set at the {spot} of {place}.",
    "A {job} and a {job} meet at the {spot}, and they travel to {place} together.",
    "Then a letter from {place} arrives, and the {job} has to choose.",
    "Meanwhile a {any} {job} hides the {thing} near the {spot}.",
    "She is not who she says she is, and the {job} begins to ask questions.",
    "It was shown in {place} in {year}, two years after {title}.",
    "The {job} never learned to read, and so the {thing} stays where it is.",
    "They live a {any} life in a house by the {spot} until the {thing} disappears.",
    "My {friend} wanted to see {title}, but there were no seats left.",
    "There are {number} scenes at the {spot}, most of them at night.",
    "Half of the cast, {person} and {person} among them, come from {place}.",
)

WORDS: Mapping[str, Sequence[str]] = {
    "film": ("the film", "this film", "this movie", "the whole thing", "the picture", "{title}"),
    "tale": (
        "the story", "the plot", "the dialogue", "the humour", "the ending", "the script",
        "the first half", "the last hour",
    ),
    "detail": (
        "the acting", "the camera work", "the music", "the editing", "the lighting", "the cast",
        "the direction", "the set", "the scenery", "the sound",
    ),
    "any": [word for side in ADJECTIVES for listed in side for word in listed],
    "job": _listed(
        "doctor teacher sailor detective painter farmer nurse pianist baker lawyer waiter soldier "
        "widow student thief clerk singer miner judge gardener pilot tailor cook reporter"
    ),
    "thing": _listed(
        "letter ring map violin photograph diary suitcase key clock coat painting horse bicycle "
        "radio lamp ticket mirror boat necklace book"
    ),
    "spot": _listed(
        "harbour station bridge market church lake mill forest theatre hotel garden river school "
        "lighthouse square factory"
    ),
    "friend": _listed("brother sister mother father cousin neighbour colleague uncle aunt wife"),
    "day": _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "number": [str(number) for number in range(70, 160, 3)],
    "year": [str(year) for year in range(1931, 2010, 2)],
    "title": ('"The {Thing} of {place}"', '"{surname}"', '"Return to {place}"', '"{first}"'),
    "Thing": _listed("Lamp Road Winter Clock Letter House Night Garden Widow Train Summer Voyage"),
    "person": ("{first} {surname}", "{first} {surname}", "{surname}"),
    "first": _listed(
        "Anna Bela Carlo Dora Edgar Frieda Greta Hugo Irma Jonas Katja Leon Mira Nils Olga Pavel "
        "Rosa Simon Tilda Viktor"
    ),
    "surname": ("{start}{middle}{end}", "{start}{end}"),
    "place": ("{start}{middle}{shore}", "{start}{shore}"),
    "start": _listed("Bar Cor Dal Fen Gor Hal Jar Kel Lor Mar Nor Pel Quin Ros Sel Tor Var Wil"),
    "middle": _listed("a be di go lan mi no ra ska ti u vel"),
    "end": _listed("berg dini feld kov lund mann nen quist rini sen ski stad tas ver witz"),
    "shore": _listed("bach borough by dale field ford grad ham haven hult mouth ton vik ville"),
}  # fmt: skip


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """One of the items. Of a seed's draws, Python promises to keep those of `random()` alone."""
    return items[int(rng.random() * len(items))]


def fill(rng: Random, template: str, words: Mapping[str, Sequence[str]] = WORDS) -> str:
    """The template with every {slot} replaced by one of the slot's words, filled in its turn."""
    return re.sub(r"\{(\w+)\}", lambda slot: fill(rng, pick(rng, words[slot[1]]), words), template)


def shuffled(rng: Random, items: Sequence[Item]) -> list[Item]:
    """The items in random order."""
    return sorted(items, key=lambda _: rng.random())


def make_opinion(rng: Random, label: int, degree: int, subjects: Sequence[str]) -> str:
    """A sentence that judges one of the subjects, from mildly (`degree` 1) to strongly (4)."""
    strong, theirs = int(degree > 2), int(rng.random() < 0.5)
    ours = ADJECTIVES[label][strong]
    if degree in (1, 4) and rng.random() < 0.6:
        ours = [f"{pick(rng, BOOSTERS if strong else HEDGES)} {word}" for word in ours]
    words = {
        **WORDS,
        "subject": subjects,
        "ours": ours,
        "our_noun": NOUNS[label][strong],
        "theirs": ADJECTIVES[1 - label][theirs],
        "their_noun": NOUNS[1 - label][theirs],
    }
    kind = pick(rng, [kind for kind, share in SHARES[degree].items() for _ in range(share)])
    return fill(rng, pick(rng, OPINIONS[kind]), words)


def make_review(rng: Random, label: int) -> tuple[str, int]:
    """The text of a review and its rating: 1 to 4 for label 0, 7 to 10 for label 1."""
    degree = 1 + int(4 * rng.random())  # how far the rating is from the middle
    verdict = make_opinion(rng, label, degree, WORDS["film"])
    subjects = shuffled(rng, WORDS["tale"])[: pick(rng, REMARKS[degree])]
    remarks = [make_opinion(rng, label, degree, [subject]) for subject in subjects]
    neutral = [fill(rng, line) for line in shuffled(rng, NEUTRAL)[: pick(rng, LENGTHS)]]

    # the verdict opens the review, closes it, or stands somewhere among the rest
    layout = pick(rng, ("first", "first", "last", "among"))
    if layout == "first":
        sentences = [verdict, *remarks, *neutral]
    elif layout == "last":
        sentences = [*neutral, *remarks, verdict]
    else:
        sentences = shuffled(rng, [verdict, *remarks, *neutral])
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
        gap = pick(rng, (" ", " ", " ", "<br /><br />")) if text else ""
        text += gap + sentence
    return text


def make_corpus(num_train: int = 2000, num_test: int = 1000, seed: int = 0) -> list[Review]:
    """The reviews of a corpus, half of them negative; in the default one no two are alike."""
    rng, reviews = Random(seed), []
    for part, count in (("train", num_train), ("test", num_test)):
        for number in range(count // 2):
            for label in (0, 1):
                text, rating = make_review(rng, label)
                reviews.append(Review(part, label, number, rating, text))
    return reviews
