"""Cambrian-1 as its authors publish it: a Llama's checkpoint with the aggregator in it, and encoders elsewhere.

config.json has the model type "cambrian_llama" and names the encoders. Each encoder is looked for in the checkpoint's
own folder `towers/<last part of its name>` first, and on the hub where the published code takes it from otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from core.cambrian.configuration import CambrianConfig
from core.cambrian.model import CambrianForConditionalGeneration
from core.cambrian.processing import CambrianImageProcessor, CambrianProcessor
from core.cambrian.released_towers import released_tower
from core.cambrian.weights import read_tensors
from core.encoders.llava import llava_tokenizer
from core.errors import GroundingError
from core.prompts import IMAGE, TEMPLATES

FIELDS = (  # of config.json
    *("mm_projector_type", "mm_vision_tower_aux_list", "mm_vision_tower_aux_token_len_list", "mm_vision_select_layer"),
    *("image_token_len", "query_num_list", "vision_hidden_size", "connector_depth", "connector_only"),
)
INSIDE_FIELDS = tuple(f"{name}_of_vision_sampler_layers" for name in ("num", "start", "stride"))
SAME = ("vision_sampler_", "vision_query", "image_newline", "mm_projector")  # behind "model.", named as ours
INSIDE = re.compile(r"model\.vision_sampler_layers\.(\d+)\.(.+)")
UNREAD = re.compile(r".*rotary_emb\.inv_freq|model\.vision_tower_aux_list\..*")  # the published code does not, either
_SYSTEM = (  # written with these line breaks and spaces
    "You are Cambrian, a highly intelligent multimodal AI trained by NYU Vision X. \\n    As a multimodal AI, you have "
    "the ability to process and analyze images. Whenever an image is present in the conversation, very carefully "
    "examine it and consider its content when formulating your response.\\n    You should give concise responses to "
    "very simple questions, but provide thorough responses to more complex and open-ended questions. "
)
LLAMA_3 = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>' }}"
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{{ s if s is string else s[0]['text'] }}{% else %}{{ '" + _SYSTEM + "' }}{% endif %}{{ '<|eot_id|>' }}"
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"
)


class ReleasedCambrian:
    """A published checkpoint: its configuration and processor at once, its weights when asked for.

    Args:
        source: a directory or hub id.
        released: its config.json.
        revision: branch, tag or commit on the hub.

    Raises:
        GroundingError: another connector than the aggregator, an encoder that is not known, or one that is not there.
    """

    def __init__(self, source: str, released: Any, revision: str | None = None):
        self.source, self.revision = source, revision
        self._check(released)
        lengths = released.mm_vision_tower_aux_token_len_list
        self.towers = [
            released_tower(source, name, _side(length), layer=released.mm_vision_select_layer)
            for name, length in zip(released.mm_vision_tower_aux_list, lengths, strict=True)
        ]
        self.tokenizer = llava_tokenizer(source, revision=revision)
        self.config = self._config(released)

    def _check(self, released: Any) -> None:
        inside = () if getattr(released, "connector_only", True) else INSIDE_FIELDS
        absent = [name for name in (*FIELDS, *inside) if not hasattr(released, name)]
        if absent:
            raise GroundingError(
                f"config.json of {self.source!r} does not say {', '.join(absent)}, as published ones do"
            )
        kind = released.mm_projector_type
        if kind != "sva":
            raise GroundingError(
                f"{self.source!r} joins its encoders with {kind!r}; the connector of Cambrian-1, 'sva' (spatial vision "
                "aggregator), is the one that can be read"
            )
        if getattr(released, "mm_use_im_start_end", False):
            raise GroundingError(
                f"{self.source!r} puts tokens around its pictures (mm_use_im_start_end), which no published one does"
            )
        if getattr(released, "mm_vision_select_feature", "patch") != "patch":
            raise GroundingError(
                f"{self.source!r} takes {released.mm_vision_select_feature!r} features of its encoders; only the "
                "patches have a place on the picture"
            )

    def _config(self, released: Any) -> CambrianConfig:
        token = self.tokenizer.convert_tokens_to_ids(IMAGE)
        known = LlamaConfig().to_dict().keys() - {"architectures", "dtype", "model_type", "transformers_version"}
        text = {key: value for key, value in released.to_diff_dict().items() if key in known}
        inside = not released.connector_only
        return CambrianConfig(
            text_config=text | {"vocab_size": max(released.vocab_size, token + 1)},
            towers=[tower.given for tower in self.towers],
            image_token_id=token,
            side=_side(released.image_token_len),
            query_sides=[_side(number) for number in released.query_num_list],
            width=released.vision_hidden_size,
            depth=released.connector_depth,
            samplers=released.num_of_vision_sampler_layers if inside else 0,
            start=released.start_of_vision_sampler_layers if inside else 0,
            stride=released.stride_of_vision_sampler_layers if inside else 1,
            dtype=released.dtype,
        )

    @property
    def processor(self) -> CambrianProcessor:
        """Its chat template is the one that it was trained with: Llama-3's own for Cambrian-1 8B, Vicuna's for 13B.

        Source: conversations "llama_3" and "vicuna_v1" of the published code. Where a Llama-3 tokenizer writes no first
        token by itself, its inference script drops the line break behind the picture; training keeps it, and so do we.
        """
        llama_3 = "<|start_header_id|>" in self.tokenizer.get_vocab()
        return CambrianProcessor(
            image_processor=CambrianImageProcessor(towers=self.config.towers),
            tokenizer=self.tokenizer,
            side=self.config.side,
            chat_template=LLAMA_3 if llama_3 else TEMPLATES["vicuna_v1"],
        )

    def load(self, **options: Any) -> CambrianForConditionalGeneration:
        """The model.

        Args:
            options: dtype, device_map, quantization_config and so on, as for `from_pretrained`.

        Raises:
            GroundingError: weights that are missing, have another shape, or have no place.
        """
        from transformers.utils import cached_file

        state = self.weights()
        model = CambrianForConditionalGeneration.from_pretrained(None, config=self.config, state_dict=state, **options)
        quiet = {"_raise_exceptions_for_missing_entries": False, "revision": self.revision}
        if cached_file(self.source, "generation_config.json", **quiet) is not None:
            told = GenerationConfig.from_pretrained(self.source, revision=self.revision)
            if not told.do_sample:  # transformers does not save what greedy decoding has no use for
                told.temperature = told.top_p = told.top_k = None
            model.generation_config = told
        model.config.name_or_path = self.source
        return model

    def weights(self) -> dict[str, Tensor]:
        """All weights by our names.

        Raises:
            GroundingError: as for `load`.
        """
        state = dict(self._renamed())
        rows = self.config.text_config.vocab_size
        for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            if name in state:  # the image token, whose row is never read and never the likeliest
                state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, max(0, rows - len(state[name]))))
        for number, tower in enumerate(self.towers):
            state |= {f"model.towers.{number}.body.{name}": value for name, value in tower.weights().items()}
        with torch.device("meta"):
            wanted = CambrianForConditionalGeneration(self.config).state_dict()
        self._compare(state, wanted)
        return state

    def _renamed(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in read_tensors(self.source, self.revision):
            if UNREAD.fullmatch(name):
                continue
            inside = INSIDE.fullmatch(name)
            if inside and int(inside[1]) < self.config.samplers:
                layer = self.config.sampled_layers[int(inside[1])]
                name = f"model.language_model.layers.{layer}.sampler.{inside[2]}"
            elif name.startswith("model.") and not name.removeprefix("model.").startswith(SAME):
                name = f"model.language_model.{name.removeprefix('model.')}"
            yield name, value

    def _compare(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
        missing, strange = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        if missing or strange:
            said = [f"lacks {_some(missing)}"] if missing else []
            said += [f"has no place for {_some(strange)}"] if strange else []
            raise GroundingError(
                f"the checkpoint {self.source!r} {' and '.join(said)}; give the complete published directory, with the "
                "encoders that its config.json names"
            )
        for name, value in wanted.items():
            if state[name].shape != value.shape:
                raise GroundingError(
                    f"{name} has shape {list(state[name].shape)} in {self.source!r}, but its config.json asks for "
                    f"{list(value.shape)}"
                )


def _side(count: int) -> int:
    """Of a square grid.

    Raises:
        GroundingError: it is none.
    """
    side = round(count**0.5)
    if side * side != count:
        raise GroundingError(f"{count} visual tokens are no square grid")
    return side


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
