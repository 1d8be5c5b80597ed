"""Random words and what stands before a noun: compounds, adjectives, determiners, possessives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from embedded.english import lexicon
from embedded.english.trees import Node


def weighted(rng: random.Random, table: Sequence[tuple[float | int, Callable]]) -> Callable:
    """One entry of a table of (weight, entry) pairs, as often as its weight says."""
    return rng.choices([entry for _, entry in table], [weight for weight, _ in table])[0]


def pick(rng: random.Random, choices: str) -> str:
    """One of the words of a string."""
    return rng.choice(choices.split())


def invented(rng: random.Random) -> str:
    """A word that no list holds, so that the parser learns to go by its surroundings."""
    syllables = [
        rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l", "s", "t"])
        for _ in "ab"
    ]
    return "".join(syllables) + rng.choice(["", "t", "k", "der", "let"])


def noun(rng: random.Random, topics: Sequence[str], many: bool) -> tuple[Node, str]:
    """A noun, possibly a compound, and its kind ("count", "mass" or "plural")."""
    _, word, kind = rng.choice(lexicon.nouns(rng.choice(topics)))
    if rng.random() < 0.12 and kind == "count":
        word = invented(rng)
    if kind == "plural":
        many = True
    if many and kind == "count":
        word, kind = lexicon.plural(word), "plural"
    *modifiers, head = word.split(" ")
    node = Node(head, "NNS" if kind == "plural" else "NN")
    if not modifiers and rng.random() < 0.06:
        modifiers = [rng.choice(lexicon.nouns(rng.choice(lexicon.THING_TOPICS)))[1].split(" ")[-1]]
    parts, glued = _compound_parts([*modifiers, head])
    return replace(node, word=parts[-1][1].word, left=parts[:-1], glued=glued), kind


def _compound_parts(spaced: list[str]) -> tuple[tuple[tuple[str, Node], ...], bool]:
    """All words of a compound with their hyphens, and whether a hyphen ties the last one: "t-shirt" is three tokens."""
    parts: list[tuple[str, Node]] = []
    for word in spaced:
        *first, last = word.split("-")
        for piece in first:
            parts += [("compound", Node(piece, "NN")), ("punct", Node("-", "HYPH", glued=True))]
        parts.append(("compound", Node(last, "NN", glued=bool(first))))
    return tuple(parts), parts[-1][1].glued


def adjectives(rng: random.Random) -> list[tuple[str, Node]]:
    """0 to 3 modifiers before a noun."""
    found: list[tuple[str, Node]] = []
    if rng.random() < 0.2:
        found.append(("amod", Node(rng.choice(lexicon.SIZES), "JJ")))
    if rng.random() < 0.22:
        look = invented(rng) if rng.random() < 0.08 else rng.choice(lexicon.LOOKS)
        node = Node(look, "JJ")
        if rng.random() < 0.08:
            node = node.after("advmod", Node(pick(rng, "very brightly slightly partially light dark"), "RB"))
        found.append(("amod", node))
    if rng.random() < 0.33:
        node = Node(rng.choice(lexicon.COLOURS), "JJ")
        if rng.random() < 0.14:
            joined = Node("and", "CC"), Node(rng.choice(lexicon.COLOURS), "JJ")
            node = node.then("cc", joined[0]).then("conj", joined[1])
        found.append(("amod", node))
    if rng.random() < 0.08:
        participle = rng.choice(lexicon.PARTICIPLES)
        found.append(("amod", Node(participle, "VBG" if participle.endswith("ing") else "VBN")))
    if rng.random() < 0.03:
        hyphen = ("punct", Node("-", "HYPH", glued=True))
        parts = rng.choice([("medium", "sized"), ("well", "lit"), ("brick", "paved"), ("long", "haired")])
        found.append(("amod", Node(parts[1], "VBN", (("advmod", Node(parts[0], "RB")), hyphen), glued=True)))
    if len(found) > 1 and rng.random() < 0.2:
        found.insert(1, ("punct", Node(",", ",")))
    return found


def determiner(rng: random.Random, kind: str, first: str) -> tuple[str, Node] | None:
    """A determiner, possessive, number or nothing, that fits the noun's kind."""
    article = Node("an" if first[0] in "aeiou" else "a", "DT")
    roll = rng.random()
    if kind == "count":
        if roll < 0.5:
            return "det", article
        if roll < 0.82:
            return "det", Node("the", "DT")
        if roll < 0.88:
            return "det", Node(pick(rng, "this that another each every one no"), "DT")
        if roll < 0.95:
            return "poss", Node(pick(rng, "his her its their"), "PRP$")
        return "poss", _owner(rng)
    if roll < 0.25:
        return "det", Node("the", "DT")
    if roll < 0.35:
        return "det", Node(pick(rng, "some these all no" if kind == "plural" else "some the this"), "DT")
    if roll < 0.6 and kind == "plural":
        many = rng.choice(["several", "many", "various", "multiple", "numerous", "other", "few", *lexicon.NUMBERS * 2])
        return ("nummod", Node(many, "CD")) if many in lexicon.NUMBERS else ("amod", Node(many, "JJ"))
    if roll < 0.66:
        return "poss", Node(pick(rng, "his her its their"), "PRP$")
    if roll < 0.7:
        return "poss", _owner(rng)
    return None


def _owner(rng: random.Random) -> Node:
    owner, kind = noun(rng, lexicon.PEOPLE_TOPICS, rng.random() < 0.2)
    owner = replace(
        owner, left=(("det", Node("the" if rng.random() < 0.75 or kind != "count" else "a", "DT")), *owner.left)
    )
    return owner.then("case", Node("'" if owner.word.endswith("s") else "'s", "POS"))
