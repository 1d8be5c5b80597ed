"""Cambrian-1's forward pass, written once more and plainly: tensors by their published names, one function a formula.

Nothing here uses `core`. The encoders are transformers' and timm's own; the rest is Llama's and the aggregator's
formulas, one picture and one cell at a time where that is the plainest.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, Dinov2Model

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FOLDERS = (
    "CLIP-ViT-SO400M-14-384",
    "clip-vit-large-patch14-336",
    "dinov2-giant-res126",
    "clip-convnext-XXL-multi-stage-res256",
)


class PlainCambrian:
    """A checkpoint in the published layout, in a dtype of choice."""

    def __init__(self, directory: Path, dtype: torch.dtype):
        self.config = json.loads((directory / "config.json").read_text())
        self.dtype = dtype
        self.w = {name: value.to(dtype) for name, value in load_file(directory / "model.safetensors").items()}
        siglip, clip, dino, convnext = (directory / "towers" / name for name in FOLDERS)
        args = json.loads((siglip / "config.json").read_text())["model_args"]
        self.siglip = timm.create_model("vit_so400m_patch14_siglip_384", **args)
        self.siglip.load_state_dict(load_file(siglip / "model.safetensors"))
        self.clip, self.dino = CLIPVisionModel.from_pretrained(clip), Dinov2Model.from_pretrained(dino)
        self.convnext = timm.create_model("test_convnext", num_classes=0)
        state = torch.load(convnext / "open_clip_pytorch_model.bin", weights_only=True)
        self.convnext.load_state_dict({k[13:]: v for k, v in state.items() if k.startswith("visual.trunk.")})
        for tower in (self.siglip, self.clip, self.dino, self.convnext):
            tower.to(dtype).eval()

    @torch.no_grad()
    def logits(self, before: list[int], picture: Image.Image, after: list[int]) -> Tensor:
        """[s, V]: scores at every position of words, picture, words."""
        grids = self.projected(picture)
        context = grids[0].mean((0, 1))
        cells = self.connector(grids, context, picture.size)
        rows, columns = kept(picture.size, cells.shape[0])
        newline = self.w["model.image_newline"]
        image = torch.cat([torch.cat([cells[r][columns], newline[None]]) for r in rows])
        words = self.w["model.embed_tokens.weight"]
        hidden = torch.cat([words[before], image, words[after]])
        return self.llama(hidden, len(before), rows, columns, grids, context, picture.size)

    # ---- pictures

    def projected(self, picture: Image.Image) -> list[Tensor]:
        """Of each encoder [side, side, 32]."""
        cast = self.dtype
        siglip = self.siglip.forward_features(pixels(picture, 126, CLIP_MEAN, [0.5] * 3, [0.5] * 3).to(cast))[0]
        clip = self.clip(pixels(picture, 112, CLIP_MEAN, CLIP_MEAN, CLIP_STD).to(cast), output_hidden_states=True)
        dino = self.dino(pixels(picture, 126, IMAGENET_MEAN, IMAGENET_MEAN, IMAGENET_STD).to(cast))
        stages, x = [], self.convnext.stem(pixels(picture, 256, CLIP_MEAN, CLIP_MEAN, CLIP_STD).to(cast))
        for stage in self.convnext.stages:
            x = stage(x)
            stages.append(bilinear(x[0].permute(1, 2, 0), 32))
        features = [
            bilinear(siglip.reshape(9, 9, -1), 8),
            clip.hidden_states[-2][0, 1:].reshape(8, 8, -1),
            bilinear(dino.last_hidden_state[0, 1:].reshape(9, 9, -1), 8),
            torch.cat(stages, -1),
        ]
        return [self.project(i, grid) for i, grid in enumerate(features)]

    def project(self, number: int, grid: Tensor) -> Tensor:
        name = f"model.mm_projector_aux_{number}"
        return self.norm(f"{name}.3", self.linear(f"{name}.2", F.gelu(self.linear(f"{name}.0", grid))))

    def connector(self, grids: list[Tensor], context: Tensor, size: tuple[int, int]) -> Tensor:
        """[side, side, d]."""
        side = math.isqrt(self.config["image_token_len"])
        groups = []
        for group, count in enumerate(self.config["query_num_list"]):
            own = math.isqrt(count)
            found = torch.stack([torch.stack([self.w["model.vision_query"][group]] * own)] * own)
            for row in range(own):
                for column in range(own):
                    windows = [window(grid, row, column, own, size) for grid in grids]
                    name, depth = f"model.vision_sampler_{group}", self.config["connector_depth"]
                    found[row, column] = self.sampler(name, depth, found[row, column], context, windows)
            groups.append(bilinear(found, side))
        return self.linear("model.mm_projector.2", F.gelu(self.linear("model.mm_projector.0", torch.cat(groups, -1))))

    def sampler(self, name: str, depth: int, query: Tensor, context: Tensor, windows: list[Tensor]) -> Tensor:
        """One cell's query [q], once more for each layer."""
        for layer in (f"{name}.layers.{index}" for index in range(depth)):
            asked = torch.cat([query, self.linear(f"{layer}.proj_context", context)])
            asked = self.linear(f"{layer}.proj_in", asked)
            found = self.norm(f"{layer}.norm", asked + self.attention(layer, asked, windows))
            found = F.gelu(self.linear(f"{layer}.proj_out.linear_1", found))
            query = query + self.linear(f"{layer}.proj_out.linear_2", found)
        return query

    def attention(self, layer: str, asked: Tensor, windows: list[tuple[Tensor, Tensor]]) -> Tensor:
        """16 heads over the features of all encoders in a cell; padding gets nothing."""
        name, keys, values, seen = f"{layer}.cross_attn", [], [], []
        for i, (features, real) in enumerate(windows):
            if len(features) > 1:
                features = features + self.w[f"{layer}.pos_embed_{i}"]
            for kind, kept_ in (("k", keys), ("v", values)):
                projected = self.linear(f"{name}.{kind}_proj_{i}.1", self.norm(f"{name}.{kind}_proj_{i}.0", features))
                kept_.append(projected)
            seen.append(real)
        q = self.linear(f"{name}.q_proj.1", self.norm(f"{name}.q_proj.0", asked)).reshape(16, 1, -1)
        k, v = (torch.cat(x).reshape(sum(map(len, seen)), 16, -1).transpose(0, 1) for x in (keys, values))
        scores = (q @ k.transpose(1, 2)) / math.sqrt(q.shape[-1])
        scores[:, :, ~torch.cat(seen)] = -math.inf
        return self.linear(f"{name}.o_proj", (scores.softmax(-1) @ v).reshape(-1))

    # ---- words

    def llama(self, hidden: Tensor, start: int, rows: range, columns: list[int], *vision: Any) -> Tensor:
        c = self.config
        inside = (
            {}
            if c["connector_only"]
            else {
                c["start_of_vision_sampler_layers"] + j * c["stride_of_vision_sampler_layers"]: j
                for j in range(c["num_of_vision_sampler_layers"])
            }
        )
        for layer in range(c["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            hidden = hidden + self.self_attention(f"{name}.self_attn", self.rms(f"{name}.input_layernorm", hidden))
            normed = self.rms(f"{name}.post_attention_layernorm", hidden)
            gated = F.silu(self.linear(f"{name}.mlp.gate_proj", normed)) * self.linear(f"{name}.mlp.up_proj", normed)
            hidden = hidden + self.linear(f"{name}.mlp.down_proj", gated)
            if layer in inside:
                hidden = self.look_again(inside[layer], hidden, start, rows, columns, *vision)
        return self.linear("lm_head", self.rms("model.norm", hidden))

    def look_again(
        self, number: int, hidden: Tensor, start: int, rows: range, columns: list[int], *vision: Any
    ) -> Tensor:
        """Every cell, not the newlines, through its sampler."""
        grids, context, size = vision
        side, changed = math.isqrt(self.config["image_token_len"]), hidden.clone()
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                place = start + i * (len(columns) + 1) + j
                windows = [window(grid, row, column, side, size) for grid in grids]
                name = f"model.vision_sampler_layers.{number}"
                changed[place] = self.sampler(name, 1, hidden[place], context, windows)
        return changed

    def self_attention(self, name: str, hidden: Tensor) -> Tensor:
        count, heads, groups = len(hidden), self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q = turned(self.linear(f"{name}.q_proj", hidden).reshape(count, heads, -1), self.config["rope_theta"])
        k = turned(self.linear(f"{name}.k_proj", hidden).reshape(count, groups, -1), self.config["rope_theta"])
        v = self.linear(f"{name}.v_proj", hidden).reshape(count, groups, -1)
        out = []
        for head in range(heads):
            own = head // (heads // groups)
            scores = q[:, head] @ k[:, own].T / math.sqrt(q.shape[-1])
            scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
            out.append(scores.softmax(-1) @ v[:, own])
        return self.linear(f"{name}.o_proj", torch.cat(out, -1))

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        return x @ self.w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt() * self.w[f"{name}.weight"]


def turned(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of [s, heads, d]; angles in float32, as in Llama."""
    half = x.shape[-1] // 2
    frequencies = 1 / theta ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def pixels(picture: Image.Image, size: int, padding: list[float], mean: list[float], std: list[float]) -> Tensor:
    """[1, 3, size, size]: padded to a square with a colour, resized, normalised."""
    width, height = picture.size
    whole = Image.new("RGB", (max(width, height),) * 2, tuple(int(channel * 255) for channel in padding))
    whole.paste(picture, ((max(width, height) - width) // 2, (max(width, height) - height) // 2))
    values = torch.tensor(np.array(whole.resize((size, size), Image.Resampling.BICUBIC))).float() / 255
    return ((values - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


def bilinear(grid: Tensor, side: int) -> Tensor:
    """[h, w, c] -> [side, side, c]; the middle of a new cell between the middles of the old ones around it."""
    if len(grid) == side:
        return grid
    rows = mixing(len(grid), side).to(grid.dtype)
    return torch.einsum("ah,bw,hwc->abc", rows, rows, grid)


def mixing(old: int, new: int) -> Tensor:
    """float64 [new, old]: how much of each old row is in each new one."""
    mix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        middle = max((i + 0.5) * old / new - 0.5, 0.0)
        low = int(middle)
        high = min(low + 1, old - 1)
        mix[i, low] += 1 - (middle - low)
        mix[i, high] += middle - low
    return mix


def cut(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(rows, columns) of padding at each end; `size` is (W, H)."""
    width, height = size
    if width / height > 1:
        return (side - int(height * (side / width))) // 2, 0
    return 0, (side - int(width * (side / height))) // 2


def kept(size: tuple[int, int], side: int) -> tuple[range, list[int]]:
    rows, columns = cut(size, side)
    return range(rows, side - rows), list(range(columns, side - columns))


def window(grid: Tensor, row: int, column: int, side: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a cell sees of an encoder's grid, [n, c], and bool [n], which of it is picture; all if none is."""
    reach = len(grid) // side
    features, real = [], []
    rows, columns = kept(size, len(grid))
    for y in range(row * reach, (row + 1) * reach):
        for x in range(column * reach, (column + 1) * reach):
            features.append(grid[y, x])
            real.append(y in rows and x in columns)
    return torch.stack(features), torch.tensor(real if any(real) else [True] * len(real))
