import json

import jaxtyping
import pytest

from core.errors import GroundingError
from core.options import PRESETS, GroundOptions


def test_options_are_a_value() -> None:
    first, second = GroundOptions(heads=[0, -1]), GroundOptions(heads=(0, -1))
    assert first == second and hash(first) == hash(second)
    assert GroundOptions.of(first, heads=None) == GroundOptions()
    assert GroundOptions.of("paper") == GroundOptions.of() == GroundOptions()


@pytest.mark.parametrize("name", PRESETS)
def test_options_survive_json(name: str) -> None:
    options = PRESETS[name]
    assert GroundOptions(**json.loads(json.dumps(options.as_dict()))) == options
    assert GroundOptions.of("paper", **options.changes()) == options


def test_presets_differ_from_one_another() -> None:
    assert len(set(PRESETS.values())) == len(PRESETS)


def test_a_selection_of_heads_is_captured_without_being_told_to() -> None:
    assert GroundOptions(heads=[0]).capture() == {"row": "predicting", "per_head": True}
    assert GroundOptions(row="self").capture() == {"row": "self", "per_head": False}
    assert PRESETS["reference_v1"].capture()["per_head"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": "last"}, "row 'last' is not known; choose one of predicting, self"),
        ({"normalization": "mean"}, "normalization 'mean' is not known; choose one of sequence, none"),
        ({"aggregation": "sum"}, "choose one of mean, max, first, pixel_max"),
        ({"sam_prompt": "box"}, "choose one of point, mask"),
        ({"mask_choice": "first"}, "choose one of last, best, all"),
        ({"heads": "all"}, "heads is 'all'; give a list of whole numbers"),
        ({"layers": [0.5]}, r"layers is \[0.5\]"),
        ({"token_offset": -1}, "token_offset is -1; it must be a whole number of at least 0"),
        ({"first_tokens": 0}, "first_tokens is 0; it must be a whole number of at least 1"),
        ({"pronouns": "yes"}, "pronouns is 'yes'; it must be True or False"),
        ({"mask_temperature": 0}, "mask_temperature is 0; give a number above 0, or None"),
        ({"mask_threshold": "high"}, "mask_threshold is 'high'; give a number"),
        ({"normalisation": "none"}, "unknown options normalisation; grounding takes row, per_head, "),
    ],
)
def test_refusals(changes: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which refuses wrong types first, in tests only
    with pytest.raises(GroundingError, match=message):
        GroundOptions.of(**changes)
