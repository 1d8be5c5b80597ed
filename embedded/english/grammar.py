"""Noun and verb phrases with their grammar: random trees of the kind that image descriptions are made of.

A parser trained on them has the noun chunks that `en_core_web_lg` would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from embedded.english import lexicon
from embedded.english.trees import Node
from embedded.english.words import adjectives, determiner, noun, pick, weighted


def phrase(
    rng: random.Random,
    topics: Sequence[str] = lexicon.THING_TOPICS,
    *,
    depth: int = 0,
    many: bool | None = None,
    after: float = 0.3,
) -> Node:
    """A noun phrase, sometimes with what follows it: a phrase of place, a participle, a relative clause, examples."""
    many = rng.random() < 0.28 if many is None else many
    head, kind = noun(rng, topics, many)
    before = [*adjectives(rng), *head.left]
    first = next((node for _, node in before), head)
    while first.left:
        first = first.left[0][1]
    chosen = determiner(rng, kind, first.word)
    head = replace(head, left=tuple([chosen, *before] if chosen else before))
    if depth < 2 and rng.random() < after:
        head = weighted(rng, AFTER)(rng, head, depth)
    return head


def group(rng: random.Random, topics: Sequence[str], depth: int) -> Node:
    """As in "a group of people", "a pair of scissors", "a variety of fruits"."""
    head = Node(
        pick(rng, "group pair bunch variety number row set pile couple lot collection slice piece cup glass"),
        "NN",
    )
    inner = phrase(rng, topics, depth=depth + 1, many=True, after=0.15)
    return head.after("det", Node("a", "DT")).then("prep", Node("of", "IN").then("pobj", inner))


def pronoun(rng: random.Random) -> Node:
    """As in "it", "they", "one", "someone"."""
    return Node(pick(rng, "it they he she it they"), "PRP")


def things(rng: random.Random, depth: int = 0, *, after: float = 0.3) -> Node:
    """A noun phrase about anything."""
    topics = rng.choice([lexicon.THING_TOPICS, lexicon.THING_TOPICS, lexicon.PEOPLE_TOPICS, lexicon.PLACE_TOPICS])
    if rng.random() < 0.07:
        return group(rng, topics, depth)
    if depth and rng.random() < 0.05:
        return Node(pick(rng, "it them him her"), "PRP")
    head = phrase(rng, topics, depth=depth, after=after)
    if rng.random() < 0.2:
        return listed(
            rng, [head, *(phrase(rng, topics, depth=depth + 1, after=0.12) for _ in range(rng.choice([1, 1, 2, 3])))]
        )
    return head


def listed(rng: random.Random, items: list[Node]) -> Node:
    """As in "a, b, and c": each item hangs on the one before it."""
    last = items[-1]
    for number, item in reversed(list(enumerate(items[:-1]))):
        final = number == len(items) - 2
        if not final or (len(items) > 2 and rng.random() < 0.7):
            item = item.then("punct", Node(",", ","))
        if final:
            if rng.random() < 0.06:
                well = Node("well", "RB", (("advmod", Node("as", "RB")),))
                item = item.then("cc", Node("as", "IN", (("advmod", well),)))
            else:
                item = item.then("cc", Node("and" if rng.random() < 0.93 else "or", "CC"))
        last = item.then("conj", last)
    return last


def where(rng: random.Random, depth: int = 0) -> tuple[str, Node]:
    """(label, node) of a phrase of place."""
    return weighted(rng, PLACES)(rng, depth)


def _plain_place(rng: random.Random, depth: int) -> tuple[str, Node]:
    topics = rng.choice([lexicon.PLACE_TOPICS, lexicon.PLACE_TOPICS, lexicon.THING_TOPICS, lexicon.PEOPLE_TOPICS])
    return "prep", Node(rng.choice(lexicon.IN), "IN").then("pobj", phrase(rng, topics, depth=depth + 1, after=0.2))


def _in_place(rng: random.Random, depth: int) -> tuple[str, Node]:
    place = Node(
        pick(rng, "background foreground distance center middle air image scene picture sky room water"),
        "NN",
    )
    return "prep", Node(pick(rng, "in in in near on at"), "IN").then("pobj", place.after("det", Node("the", "DT")))


def _of_place(rng: random.Random, depth: int) -> tuple[str, Node]:
    """As in "on the left side of the image", "in the top right corner of the image", "to the right of the star"."""
    side = Node(
        pick(rng, "side corner top bottom center centre middle edge left right end half front back"),
        "NN",
    )
    if side.word in ("side", "corner", "edge", "half", "end"):
        for _ in range(2 if side.word == "corner" and rng.random() < 0.7 else 1):
            side = side.after(
                "amod",
                Node(pick(rng, "left right top bottom upper lower far other central"), "JJ"),
            )
    side = side.after("det", Node("the", "DT"))
    if rng.random() < 0.85:
        whole = Node(pick(rng, "image scene picture photo frame room"), "NN").after("det", Node("the", "DT"))
        if rng.random() < 0.45:
            whole = phrase(rng, depth=2)
        side = side.then("prep", Node("of", "IN").then("pobj", whole))
    return "prep", Node(pick(rng, "on in near at to towards toward to on"), "IN").then("pobj", side)


def _fixed_place(rng: random.Random, depth: int) -> tuple[str, Node]:
    """As in "in front of ..." and "on top of ...", which spaCy reads as two prepositions with a noun between."""
    first, middle = rng.choice([("in", "front"), ("on", "top"), ("in", "front"), ("on", "top")])
    inner = phrase(
        rng,
        rng.choice([lexicon.THING_TOPICS, lexicon.PLACE_TOPICS, lexicon.PEOPLE_TOPICS]),
        depth=depth + 1,
        after=0.12,
    )
    return "prep", Node(first, "IN").then("pobj", Node(middle, "NN").then("prep", Node("of", "IN").then("pobj", inner)))


def _next_to(rng: random.Random, depth: int) -> tuple[str, Node]:
    inner = phrase(
        rng,
        rng.choice([lexicon.THING_TOPICS, lexicon.PEOPLE_TOPICS, lexicon.PLACE_TOPICS]),
        depth=depth + 1,
        after=0.15,
    )
    return "advmod", Node("next", "RB").then("prep", Node("to", "IN").then("pobj", inner))


def _between(rng: random.Random, depth: int) -> tuple[str, Node]:
    pair = listed(rng, [phrase(rng, depth=2), phrase(rng, depth=2)])
    return "prep", Node("between", "IN").then("pobj", pair)


def _adverb_place(rng: random.Random, depth: int) -> tuple[str, Node]:
    return "advmod", Node(rng.choice(lexicon.PLACES), "RB")


PLACES = [
    (4, _plain_place),
    (2.2, _in_place),
    (3, _of_place),
    (1, _fixed_place),
    (1.1, _next_to),
    (0.4, _between),
    (0.5, _adverb_place),
]


def _after_place(rng: random.Random, head: Node, depth: int) -> Node:
    return head.then(*where(rng, depth + 1))


def _after_with(rng: random.Random, head: Node, depth: int) -> Node:
    return head.then(
        "prep",
        Node(pick(rng, "with with of without"), "IN").then("pobj", things(rng, depth + 1, after=0.15)),
    )


def _after_doing(rng: random.Random, head: Node, depth: int) -> Node:
    return head.then("acl", doing(rng, "VBG", depth + 1))


def _after_done(rng: random.Random, head: Node, depth: int) -> Node:
    return head.then("acl", done(rng, depth + 1))


def _after_relative(rng: random.Random, head: Node, depth: int) -> Node:
    many = head.tag == "NNS"
    pronoun = Node(pick(rng, "that which who that"), "WDT")
    clause = weighted(rng, [(2, is_doing), (2, is_where), (1.5, is_like), (1, does)])(rng, pronoun, many, depth + 1)
    if rng.random() < 0.25:
        head = head.then("punct", Node(",", ","))
    return head.then("relcl", clause)


def _after_such_as(rng: random.Random, head: Node, depth: int) -> Node:
    items = listed(rng, [phrase(rng, depth=2) for _ in range(rng.choice([1, 2, 3]))])
    if rng.random() < 0.5:
        return head.then("punct", Node(",", ",")).then("prep", Node("including", "VBG").then("pobj", items))
    link = Node("as", "IN").after("amod", Node("such", "JJ")).then("pobj", items)
    return (head.then("punct", Node(",", ",")) if rng.random() < 0.5 else head).then("prep", link)


AFTER = [
    (4, _after_place),
    (2, _after_with),
    (2.2, _after_doing),
    (0.9, _after_done),
    (1, _after_relative),
    (0.3, _after_such_as),
]


def doing(rng: random.Random, tag: str, depth: int) -> Node:
    """A verb in the given form with its object and a place."""
    kind = rng.choice("tti")
    forms = rng.choice(lexicon.verbs(kind))
    verb = Node(forms["VB" if tag == "VBP" else tag], tag)
    if rng.random() < 0.07:
        verb = verb.after("advmod", Node(pick(rng, "skillfully carefully quickly happily gently slowly closely"), "RB"))
    if rng.random() < 0.07:
        verb = verb.then("prt", Node(pick(rng, "up out down off away back over"), "RP", pos="ADP"))
    if kind == "t":
        verb = verb.then("dobj", things(rng, depth + 1, after=0.12))
    elif rng.random() < 0.1:
        verb = verb.then("advmod", Node(pick(rng, "together quietly happily closely slowly"), "RB"))
    if rng.random() < (0.35 if kind == "t" else 0.85):
        verb = verb.then(*where(rng, depth + 1))
    return verb


def done(rng: random.Random, depth: int) -> Node:
    """A past participle: "covered in snow", "located near the top", "surrounded by trees"."""
    if rng.random() < 0.55:
        return Node(rng.choice(lexicon.PLACED), "VBN").then(*where(rng, depth + 1))
    verb = Node(rng.choice(lexicon.verbs("t"))["VBN"], "VBN")
    if rng.random() < 0.5:
        return verb.then(
            "agent", Node("by", "IN").then("pobj", phrase(rng, lexicon.PEOPLE_TOPICS + lexicon.THING_TOPICS, depth=2))
        )
    return verb.then(*where(rng, depth + 1))


def be(many: bool, rng: random.Random) -> Node:
    """As in "is" or "are" (seldom "was", "were")."""
    past = rng.random() < 0.04
    word = ("were" if past else "are") if many else ("was" if past else "is")
    return Node(word, "VBD" if past else "VBP" if many else "VBZ", pos="AUX")


def is_where(rng: random.Random, subject: Node, many: bool, depth: int = 0) -> Node:
    """As in "The star is (located) near the top of the image, below the rook"."""
    aux = be(many, rng)
    if rng.random() < 0.4:
        verb = Node(rng.choice(lexicon.PLACED), "VBN", (("nsubjpass", subject), ("auxpass", aux)))
    else:
        verb = aux.after("nsubj", subject)
    if rng.random() < 0.1:
        verb = verb.then("advmod", Node(rng.choice(lexicon.ADVERBS), "RB"))
    verb = verb.then(*where(rng, depth))
    if rng.random() < 0.25:
        verb = verb.then("punct", Node(",", ",")).then(*where(rng, depth + 1))
    return verb


def is_like(rng: random.Random, subject: Node, many: bool, depth: int = 0) -> Node:
    """As in "The star is red", "it is larger than the rook", "the scene is simple and colorful", "it is a red star"."""
    aux = be(many, rng) if rng.random() < 0.9 else Node(*(("appear", "VBP") if many else ("appears", "VBZ")))
    verb = aux.after("nsubj", subject)
    roll = rng.random()
    if roll < 0.25:
        complement = Node(rng.choice(lexicon.COMPARATIVES), "JJR")
        if rng.random() < 0.3:
            complement = complement.after("advmod", Node(rng.choice(["much", "slightly", "far"]), "RB"))
        complement = complement.then("prep", Node("than", "IN").then("pobj", phrase(rng, depth=2)))
        return verb.then("acomp", complement)
    if roll < 0.45 and aux.pos == "AUX":
        return verb.then(
            "attr",
            phrase(rng, rng.choice([lexicon.THING_TOPICS, lexicon.PEOPLE_TOPICS]), depth=1, many=many, after=0.3),
        )
    if roll < 0.52 and aux.pos == "AUX":
        best = Node(rng.choice(lexicon.SUPERLATIVES), "JJS")
        thing = noun(rng, ("object", "shape", "animal"), False)[0]
        return verb.then("attr", thing.after("amod", best).after("det", Node("the", "DT")))
    complement = Node(rng.choice(lexicon.PREDICATES + lexicon.COLOURS), "JJ")
    if rng.random() < 0.15:
        complement = complement.after("advmod", Node(rng.choice(lexicon.ADVERBS), "RB"))
    if rng.random() < 0.2:
        complement = complement.then("cc", Node("and", "CC")).then("conj", Node(rng.choice(lexicon.PREDICATES), "JJ"))
    if rng.random() < 0.25:
        label, place = where(rng, depth + 1)
        complement = complement.then(label, place)
    return verb.then("acomp", complement)


def is_doing(rng: random.Random, subject: Node, many: bool, depth: int = 0) -> Node:
    """As in "The man is riding a horse"."""
    verb = doing(rng, "VBG", depth)
    return verb.after("aux", be(many, rng)).after("nsubj", subject)


def does(rng: random.Random, subject: Node, many: bool, depth: int = 0) -> Node:
    """As in "The man rides a horse", "the scene captures ...", "it appears to be ..."."""
    if rng.random() < 0.12:
        inner = Node("be", "VB", (("aux", Node("to", "TO")),), pos="AUX")
        inner = (
            inner.then("attr", phrase(rng, depth=1, many=many))
            if rng.random() < 0.5
            else inner.then(*where(rng, depth + 1))
        )
        return Node("appear" if many else "appears", "VBP" if many else "VBZ", (("nsubj", subject),)).then(
            "xcomp", inner
        )
    tag = "VBD" if rng.random() < 0.06 else "VBP" if many else "VBZ"
    return doing(rng, tag, depth).after("nsubj", subject)


def is_seen(rng: random.Random, subject: Node, many: bool, depth: int = 0) -> Node:
    """As in "nothing else can be seen", "a dog can be seen in the background"."""
    verb = Node(pick(rng, "seen found observed spotted"), "VBN")
    verb = replace(
        verb, left=(("nsubjpass", subject), ("aux", Node("can", "MD")), ("auxpass", Node("be", "VB", pos="AUX")))
    )
    return verb.then(*where(rng, depth)) if rng.random() < 0.7 else verb
