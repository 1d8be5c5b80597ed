"""Dependency trees and the parallel lists that spaCy trains on.

Labels are those of spaCy's English pipelines: Penn Treebank tags, universal parts of speech, ClearNLP dependencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

POS = {
    "DT": "DET", "PDT": "DET", "WDT": "PRON", "NN": "NOUN", "NNS": "NOUN", "NNP": "PROPN", "JJ": "ADJ", "JJR": "ADJ",
    "JJS": "ADJ", "RB": "ADV", "RBR": "ADV", "IN": "ADP", "CC": "CCONJ", "CD": "NUM", "PRP": "PRON", "PRP$": "PRON",
    "VB": "VERB", "VBZ": "VERB", "VBP": "VERB", "VBG": "VERB", "VBN": "VERB", "VBD": "VERB", "MD": "AUX", "TO": "PART",
    "POS": "PART", "EX": "PRON", "WP": "PRON", "WRB": "SCONJ", "UH": "INTJ", "HYPH": "PUNCT",
    ".": "PUNCT", ",": "PUNCT",
}  # fmt: skip
GLUED = {"'s", "'", ",", ".", "?", "!", "n't"}  # written without a space before


@dataclass(frozen=True)
class Node:
    """A word with its dependents to the left and right, each a (label, node) pair in the order of the text."""

    word: str
    tag: str
    left: tuple[tuple[str, Node], ...] = ()
    right: tuple[tuple[str, Node], ...] = ()
    pos: str = ""
    glued: bool = False  # no space before, whatever the word

    def then(self, label: str, node: Node) -> Node:
        """This node with one more dependent at its right end."""
        return replace(self, right=(*self.right, (label, node)))

    def after(self, label: str, node: Node) -> Node:
        """This node with one more dependent before all others."""
        return replace(self, left=((label, node), *self.left))


@dataclass
class Parsed:
    """A text as parallel lists; heads are absolute token positions, a root is its own head."""

    words: list[str] = field(default_factory=list)
    spaces: list[bool] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    pos: list[str] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    deps: list[str] = field(default_factory=list)
    starts: list[bool] = field(default_factory=list)

    def add(self, sentence: Node) -> None:
        """Append a sentence."""
        first = len(self.words)
        self._add(sentence, None, "ROOT")
        self.starts += [i == first for i in range(first, len(self.words))]

    def _add(self, node: Node, head: int | None, label: str) -> int:
        size = sum(1 for _, child in node.left for _ in _walk(child))
        place = len(self.words) + size
        for child_label, child in node.left:
            self._add(child, place, child_label)
        if (node.glued or node.word in GLUED) and self.spaces:
            self.spaces[-1] = False
        self.words.append(node.word)
        self.spaces.append(True)
        self.tags.append(node.tag)
        self.pos.append(node.pos or POS[node.tag])
        self.heads.append(place if head is None else head)
        self.deps.append(label)
        for child_label, child in node.right:
            self._add(child, place, child_label)
        return place


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for _, child in (*node.left, *node.right):
        yield from _walk(child)
