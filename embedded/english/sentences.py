"""Sentences with their grammar: descriptions, captions, questions and answers about images."""

from __future__ import annotations

import random
from dataclasses import replace

from embedded.english import lexicon
from embedded.english.grammar import (
    AFTER,
    be,
    does,
    doing,
    group,
    is_doing,
    is_like,
    is_seen,
    is_where,
    listed,
    phrase,
    pronoun,
    things,
    where,
)
from embedded.english.trees import Node, Parsed
from embedded.english.words import noun, pick, weighted


def sample(rng: random.Random, sentences: int) -> Parsed:
    """A random text of some sentences."""
    text = Parsed()
    for _ in range(sentences):
        sentence = weighted(rng, SENTENCES)(rng)
        mark = "?" if sentence.tag.endswith("?") else "!" if rng.random() < 0.04 else "."
        sentence = replace(sentence, tag=sentence.tag.rstrip("?"))
        bare = sentences == 1 and rng.random() < 0.12
        if not bare:
            sentence = sentence.then("punct", Node(mark, "."))
        begin = len(text.words)
        text.add(sentence)
        if not bare or rng.random() < 0.4:
            text.words[begin] = text.words[begin][:1].upper() + text.words[begin][1:]
    text.spaces[-1] = False
    return text


def subject(rng: random.Random) -> tuple[Node, bool]:
    """A subject and whether it takes a plural verb."""
    roll = rng.random()
    if roll < 0.13:
        node = pronoun(rng)
        return node, node.word == "they"
    if roll < 0.17:
        word = pick(rng, "nothing something someone everything")
        node = Node(word, "NN", pos="PRON")
        return (node.then("advmod", Node("else", "RB")) if rng.random() < 0.5 else node), False
    if roll < 0.21:
        node = rng.choice([Node("one", "CD"), Node("another", "DT", pos="PRON")])
        if rng.random() < 0.5:
            node = node.then(
                "prep", Node("of", "IN").then("pobj", phrase(rng, lexicon.PEOPLE_TOPICS, depth=2, many=True))
            )
        return node, False
    if roll < 0.28:
        word = pick(rng, "image picture scene photo background atmosphere setting room")
        node = Node(word, "NN", (("det", Node("the", "DT")),))
        if rng.random() < 0.3:
            node = Node(
                word,
                "NN",
                (("det", Node("the", "DT")), ("amod", Node(rng.choice(["overall", "entire", "whole"]), "JJ"))),
            )
        return node, False
    node = things(rng, after=0.22)
    joined = any(label == "conj" for label, _ in node.right)
    return node, node.tag == "NNS" or joined


def there_is(rng: random.Random) -> Node:
    """As in "There are three objects in the image", "there is a man riding a horse"."""
    thing = things(rng, after=0.35)
    many = thing.tag == "NNS"
    verb = be(many, rng).after("expl", Node("there", "EX"))
    if rng.random() < 0.12:
        verb = verb.then("advmod", Node(rng.choice(["also", "clearly", "only"]), "RB"))
    verb = verb.then("attr", thing)
    return verb.then(*where(rng)) if rng.random() < 0.5 else verb


def statement(rng: random.Random) -> Node:
    """One main clause."""
    if rng.random() < 0.2:
        return there_is(rng)
    node, many = subject(rng)
    return weighted(rng, [(3, is_where), (2.4, is_like), (2, is_doing), (1.4, does), (0.6, is_seen)])(rng, node, many)


def fronted(rng: random.Random) -> Node:
    """As in "In the background, there are trees", "Additionally, ..."."""
    clause = statement(rng)
    roll = rng.random()
    if roll < 0.3:
        label, node = "advmod", Node(rng.choice(lexicon.OPENERS).lower(), "RB")
    elif roll < 0.5:
        phrase_ = rng.choice([("in", "total"), ("in", "addition"), ("in", "general"), ("at", "night")])
        label, node = "prep", Node(phrase_[0], "IN").then("pobj", Node(phrase_[1], "NN"))
        if phrase_[1] == "addition" and rng.random() < 0.7:
            node = Node("in", "IN").then(
                "pobj", Node("addition", "NN").then("prep", Node("to", "IN").then("pobj", phrase(rng, depth=2)))
            )
    else:
        label, node = where(rng)
    if roll > 0.9:
        return clause.after(label, node)
    return replace(clause, left=((label, node), ("punct", Node(",", ",")), *clause.left))


def compound(rng: random.Random) -> Node:
    """As in "The star is red, and it is larger than the rook"."""
    first, second = statement(rng), statement(rng)
    if rng.random() < 0.75:
        first = first.then("punct", Node(",", ","))
    return first.then("cc", Node(pick(rng, "and and and but"), "CC")).then("conj", second)


def shared_subject(rng: random.Random) -> Node:
    """As in "A man is standing on a beach and holding a surfboard"."""
    node, many = subject(rng)
    first, second = is_doing(rng, node, many), doing(rng, "VBG", 1)
    if rng.random() < 0.4:
        first = first.then("punct", Node(",", ","))
    return first.then("cc", Node("and", "CC")).then("conj", second)


def subordinate(rng: random.Random) -> Node:
    """As in "A man is reading while a dog sleeps", "..., adding a touch of color", "... as he rides a wave"."""
    clause = statement(rng)
    if rng.random() < 0.5:
        clause = clause.then("punct", Node(",", ","))
    if rng.random() < 0.45:
        return clause.then("advcl", doing(rng, "VBG", 1))
    if rng.random() < 0.3:
        return clause.then("advcl", doing(rng, "VBG", 1).after("mark", Node("while", "IN", pos="SCONJ")))
    inner = statement(rng).after("mark", Node(pick(rng, "while as because while"), "IN", pos="SCONJ"))
    return clause.then("advcl", inner)


def with_clause(rng: random.Random) -> Node:
    """As in "..., with a man standing nearby", "..., with one near the left side and another on the right"."""
    clause = statement(rng)
    if rng.random() < 0.7:
        clause = clause.then("punct", Node(",", ","))
    if rng.random() < 0.7:
        inner = weighted(rng, AFTER)(
            rng, phrase(rng, lexicon.PEOPLE_TOPICS + lexicon.THING_TOPICS, depth=1, after=0.0), 1
        )
    else:
        one = Node("one", "CD").then(*where(rng, 2))
        other = Node("another", "DT", pos="PRON").then(*where(rng, 2))
        inner = one.then("cc", Node("and", "CC")).then("conj", other)
    return clause.then("prep", Node("with", "IN").then("pobj", inner))


def features(rng: random.Random) -> Node:
    """As in "The image features a red umbrella and a blue star on a striped background"."""
    node = Node(pick(rng, "image picture photo scene"), "NN", (("det", Node("the", "DT")),))
    verb = Node(
        pick(rng, "features shows depicts captures displays contains showcases presents"),
        "VBZ",
        (("nsubj", node),),
    )
    items = [
        phrase(rng, rng.choice([lexicon.THING_TOPICS, lexicon.PEOPLE_TOPICS]), depth=1, after=0.1)
        for _ in range(rng.choice([1, 1, 2, 3, 4]))
    ]
    verb = verb.then("dobj", listed(rng, items) if len(items) > 1 else items[0])
    return verb.then(*where(rng)) if rng.random() < 0.6 else verb


def caption(rng: random.Random) -> Node:
    """A fragment: "a man riding a horse down a street"."""
    head = phrase(rng, rng.choice([lexicon.PEOPLE_TOPICS, lexicon.THING_TOPICS, lexicon.PLACE_TOPICS]), after=0.0)
    if rng.random() < 0.1:
        head = group(rng, lexicon.PEOPLE_TOPICS + lexicon.THING_TOPICS, 0)
    for _ in range(rng.choice([1, 1, 1, 2])):
        head = weighted(rng, AFTER[:4])(rng, head, 0)
    if rng.random() < 0.15:
        head = listed(rng, [head, phrase(rng, lexicon.THING_TOPICS + lexicon.PEOPLE_TOPICS, depth=1, after=0.3)])
    return head


def reply(rng: random.Random) -> Node:
    """As in "Yes, there is a star in the image", "No, there is no anchor"."""
    clause = there_is(rng) if rng.random() < 0.6 else statement(rng)
    word = pick(rng, "yes no yes no sure")
    return replace(clause, left=(("intj", Node(word, "UH")), ("punct", Node(",", ",")), *clause.left))


def short(rng: random.Random) -> Node:
    """Answers of a word or two: "Yes", "Red", "Three", "On the left side"."""
    roll = rng.random()
    if roll < 0.3:
        return Node(pick(rng, "yes no sure okay hello"), "UH")
    if roll < 0.5:
        return Node(rng.choice(lexicon.COLOURS + lexicon.PREDICATES), "JJ")
    if roll < 0.6:
        return Node(rng.choice([*lexicon.NUMBERS, "one", "zero"]), "CD")
    return where(rng)[1] if roll < 0.8 else phrase(rng, after=0.0)


def question(rng: random.Random) -> Node:
    """Questions about things; the root's tag ends in "?" so that the caller sets a question mark."""
    return weighted(rng, QUESTIONS)(rng)


def _asked(node: Node) -> Node:
    return replace(node, tag=node.tag + "?")


def _what_colour(rng: random.Random) -> Node:
    node = phrase(rng, lexicon.THING_TOPICS + lexicon.PEOPLE_TOPICS, depth=1, after=0.2)
    what = Node(rng.choice(["what", "which"]), "WDT", pos="DET")
    asked = Node(pick(rng, "color colour shape size kind"), "NN", (("det", what),))
    return _asked(be(node.tag == "NNS", rng).after("attr", asked).then("nsubj", node))


def _is_there(rng: random.Random) -> Node:
    thing = phrase(rng, lexicon.THING_TOPICS + lexicon.PEOPLE_TOPICS, depth=1, after=0.2)
    verb = be(thing.tag == "NNS", rng).then("expl", Node("there", "EX")).then("attr", thing)
    return _asked(verb.then(*where(rng)) if rng.random() < 0.7 else verb)


def _where_is(rng: random.Random) -> Node:
    thing = phrase(rng, lexicon.THING_TOPICS + lexicon.PEOPLE_TOPICS, depth=1, after=0.1)
    return _asked(be(thing.tag == "NNS", rng).after("advmod", Node("where", "WRB")).then("nsubj", thing))


def _how_many(rng: random.Random) -> Node:
    many = Node("many", "JJ", (("advmod", Node("how", "WRB")),))
    things_, _ = noun(rng, lexicon.THING_TOPICS + lexicon.PEOPLE_TOPICS, True)
    things_ = replace(things_, left=(("amod", many), *things_.left))
    if rng.random() < 0.55:
        verb = be(True, rng).after("attr", things_).then("expl", Node("there", "EX"))
    else:
        verb = be(True, rng).after("nsubj", things_)
    return _asked(verb.then(*where(rng)) if rng.random() < 0.7 else verb)


def _what_is(rng: random.Random) -> Node:
    what = Node(rng.choice(["what", "who", "what"]), "WP")
    if rng.random() < 0.5:
        return _asked(be(False, rng).after("nsubj", what).then(*where(rng)))
    person = phrase(rng, lexicon.PEOPLE_TOPICS, depth=2, many=False)
    verb = Node(rng.choice(lexicon.verbs("t"))["VBG"], "VBG")
    return _asked(replace(verb, left=(("dobj", what), ("aux", be(False, rng)), ("nsubj", person))))


def _describe(rng: random.Random) -> Node:
    verb = Node(pick(rng, "describe explain identify find list locate"), "VB")
    verb = verb.then("dobj", phrase(rng, ("image", "object", "animal"), depth=1, after=0.25))
    return verb.then("prep", Node("in", "IN").then("pobj", Node("detail", "NN"))) if rng.random() < 0.5 else verb


QUESTIONS = [(2, _what_colour), (2, _is_there), (1.2, _where_is), (1.5, _how_many), (1.5, _what_is), (1, _describe)]
SENTENCES = [
    (5, statement),
    (2.2, fronted),
    (1.6, compound),
    (0.8, shared_subject),
    (1, subordinate),
    (1, with_clause),
    (2, features),
    (3, caption),
    (0.8, reply),
    (0.6, short),
    (1.3, question),
]
