"""Everything that decides how an answer is grounded, as one frozen value, checked when it is made; and named values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from core.attention import AGGREGATIONS, NORMALIZATIONS
from core.errors import GroundingError
from core.generation import ROWS
from core.masks import MASK_CHOICES

SAM_PROMPTS = ("point", "mask")


def _one_of(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, kw_only=True)
class GroundOptions:
    """How an answer is grounded; the defaults are the paper's.

    >>> GroundOptions(normalization="none").changes()
    {'normalization': 'none'}
    >>> GroundOptions.of("reference_v1", mask_choice="all").heads
    (-2,)

    Attributes:
        row: "predicting" reads the attention row of the position that predicts a token (the paper's definition), "self"
            the row whose query is the token.
        per_head: keep the maps of every layer and head in the generation; needed for nothing else, since a selection of
            layers or heads captures them by itself.
        layers, heads: average these alone (0-based, negative ones count from the end); None is all.
        normalization: "sequence" (equation 3), "none", or ours for comparison, see `core.attention.normalize`.
        pronouns: ground "it" and "they", too. A pronoun names no object, so the default is ours; the released code
            keeps them.
        first_tokens: ground the answer's first so many tokens (end of sequence included) as one phrase, instead of its
            nouns.
        token_offset: read the map this many tokens later (1 reproduces the off-by-one of the released demo).
        aggregation: over a phrase's tokens: "mean", "max", "first", or "pixel_max", which takes the maximum after
            upsampling instead of before (its map for show is that of "max").
        view: name of the view whose peak is taken; None is the last one, the finest.
        remove_corners: the four corner cells never hold the peak.
        sam_prompt: "point" (the peak) or "mask" (the whole map, with a box).
        mask_choice: "last", "best" or "all" of Segment Anything's three masks.
        mask_temperature, mask_threshold: of the mask prompt, see `core.masks.Segmenter.predict_from_maps`.
        end_of_sequence: a given answer's text is followed by the end-of-sequence token, as a generated one is, so that
            equation 3 averages over the same tokens.

    Raises:
        GroundingError: an unknown value.

    Source: section 3.1; the options follow section 4 and the released code.
    """

    row: str = _one_of("predicting", *ROWS)
    per_head: bool = False
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    normalization: str = _one_of("sequence", *NORMALIZATIONS)
    pronouns: bool = False
    first_tokens: int | None = None
    token_offset: int = 0
    aggregation: str = _one_of("mean", *AGGREGATIONS)
    view: str | None = None
    remove_corners: bool = False
    sam_prompt: str = _one_of("point", *SAM_PROMPTS)
    mask_choice: str = _one_of("last", *MASK_CHOICES)
    mask_temperature: float | None = 2e-4
    mask_threshold: float = 0.75
    end_of_sequence: bool = True

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            choices = each.metadata.get("choices")
            if choices and value not in choices:
                raise GroundingError(f"{each.name} {value!r} is not known; choose one of {', '.join(choices)}")
            if each.type == "bool" and not isinstance(value, bool):
                raise GroundingError(f"{each.name} is {value!r}; it must be True or False")
        for name in ("layers", "heads"):
            object.__setattr__(self, name, _indices(name, getattr(self, name)))
        for name, lowest in (("token_offset", 0), ("first_tokens", 1)):
            value = getattr(self, name)
            absent = name == "first_tokens" and value is None
            if not absent and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                raise GroundingError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        if self.mask_temperature is not None and not _number(self.mask_temperature, positive=True):
            raise GroundingError(f"mask_temperature is {self.mask_temperature!r}; give a number above 0, or None")
        if not _number(self.mask_threshold):
            raise GroundingError(f"mask_threshold is {self.mask_threshold!r}; give a number")

    @classmethod
    def of(cls, options: GroundOptions | str = "paper", **changes: Any) -> GroundOptions:
        """Options from a preset's name, or others, with changes.

        Raises:
            GroundingError: an unknown preset, option or value.
        """
        if isinstance(options, str):
            if options not in PRESETS:
                raise GroundingError(f"no preset is called {options!r}; choose one of {', '.join(PRESETS)}")
            options = PRESETS[options]
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise GroundingError(f"unknown options {', '.join(unknown)}; grounding takes {', '.join(known)}")
        return replace(options, **changes)

    @property
    def selects_heads(self) -> bool:
        """Whether single layers or heads are asked for, which needs the maps of every one."""
        return self.layers is not None or self.heads is not None

    def capture(self, *, given: bool = False) -> dict[str, Any]:
        """What of this `LMM.generate` must know; with a given answer, what `LMM.replay` must."""
        asked = {"row": self.row, "per_head": self.per_head or self.selects_heads}
        return asked | ({"end_of_sequence": self.end_of_sequence} if given else {})

    def as_dict(self) -> dict[str, Any]:
        """All options by name, as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changes(self) -> dict[str, Any]:
        """The options that are not the paper's."""
        usual = asdict(GroundOptions())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def _indices(name: str, chosen: Any) -> tuple[int, ...] | None:
    if chosen is None:
        return None
    if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not all(type(i) is int for i in chosen):
        raise GroundingError(f"{name} is {chosen!r}; give a list of whole numbers such as [0, 5], or None for all")
    return tuple(chosen)


def _number(value: Any, *, positive: bool = False) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (value > 0 or not positive)


_V1 = GroundOptions(heads=(-2,), pronouns=True)
_V2 = GroundOptions(aggregation="max", pronouns=True)

PRESETS: dict[str, GroundOptions] = {
    # The paper's text: all layers and heads, equation 3, mean over the noun's tokens, one point, the last mask.
    "paper": GroundOptions(),
    # Table 4's ablations: without equation 3; the map as a mask prompt.
    "no_normalization": GroundOptions(normalization="none"),
    "mask_prompt": GroundOptions(sam_prompt="mask"),
    # The pilot study keeps all three masks of a phrase as separate predictions.
    "pilot_study": GroundOptions(mask_choice="all"),
    # Code of October 2024 (aas/infer_attn.py with gcg.py or instance_seg.py): head H-2 of every layer, pronouns, too.
    # Its demo (aas/example.py) also reads one token late; its pilot study keeps three masks.
    "reference_v1": _V1,
    "reference_v1_demo": replace(_V1, token_offset=1),
    "reference_v1_pilot_study": replace(_V1, mask_choice="all"),
    # Code of 2025 (gcg.py): all heads, maximum over the noun's tokens.
    "reference_v2": _V2,
    # Its referring segmentation as first written (aas/infer_attn_res.py and res.py, commit 651d68d): head H-2 of every
    # layer, maximum over the upsampled maps of the answer's first 8 tokens. The later clean-up (b77f889) takes all
    # heads and the one token after the first "is", "are" or "be".
    "reference_v2_referring": GroundOptions(heads=(-2,), first_tokens=8, aggregation="pixel_max"),
    # Its narrative grounding (aas/infer_attn_png.py and png.py, commits 651d68d and 5e438e5): given segments as
    # phrases, each one's first token, the row whose query it is; the caption is given as ids, without end of sequence.
    # The later clean-up takes the maximum.
    "reference_v2_narrative": GroundOptions(row="self", aggregation="first", end_of_sequence=False),
}
