"""What one call of an LMM leaves behind: the answer, and where the model looked while it wrote each token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float32, Int64
from torch import Tensor

from core.errors import GroundingError
from core.geometry import View

ROWS = ("predicting", "self")
"""Which attention row is read for a token: of the position that predicts it, or of the token itself."""


@dataclass(frozen=True, eq=False)
class Generation:
    """An answer with the attention that its tokens paid to the image. All tensors are on the CPU.

    Attributes:
        text: the answer without special tokens.
        token_ids: int64 [t], as generated (with the end-of-sequence token where the model wrote one).
        prompt_ids: int64 [s], as the model saw them, image tokens expanded, no padding.
        attention: float32 [t, k], mean over all layers and heads of each token's attention row (softmax over all
            keys) at the k visual positions, in sequence order, newline slots included.
        views: the grids; the last one is the default (the high-resolution grid of tiled families).
        token_spans: int64 [t, 2], the characters of `text` that each token wrote; (c, c) for special tokens.
        image_size: (H, W) of the upright original image; of the first one, where the prompt held several.
        attention_per_head: float32 [t, l, n, k] when asked for.
        prompt_attention: float32 [k], mean over all layers, heads and words of the prompt behind the image, the row
            that predicts the first token left out; None where nothing stands there, or the answer has no token.
        model: provenance: name, revision, family, dtype, row convention, generation options.
        image_sizes: (H, W) of each image, where the prompt held several; empty for one. `of_image` gives each its own
            generation, which all later stages take.

    >>> from core import load_lmm
    >>> answer = load_lmm("embedded", device="cpu").replay("embedded", "What is there?", "A moon.", per_head=True)
    >>> answer.attention.shape, answer.attention_per_head.shape, answer.view().name
    (torch.Size([5, 100]), torch.Size([5, 4, 4, 100]), 'image')
    """

    text: str
    token_ids: Int64[Tensor, " t"]
    prompt_ids: Int64[Tensor, " s"]
    attention: Float32[Tensor, "t k"]
    views: tuple[View, ...]
    token_spans: Int64[Tensor, "t 2"]
    image_size: tuple[int, int]
    attention_per_head: Float32[Tensor, "t l n k"] | None = None
    prompt_attention: Float32[Tensor, " k"] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    image_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def n_images(self) -> int:
        """How many images the prompt held."""
        return max(1, len(self.image_sizes))

    def of_image(self, number: int) -> Generation:
        """The same answer as seen on one of the prompt's images: its views and its size alone.

        Maps keep all k visual positions, so that they can be compared between images.

        Raises:
            GroundingError: there is no such image.
        """
        if not 0 <= number < self.n_images:
            raise GroundingError(f"there is no image {number}; the prompt held {self.n_images}, counted from 0")
        if not self.image_sizes:
            return self
        views = tuple(replace(view, image=0) for view in self.views if view.image == number)
        return replace(self, views=views, image_size=self.image_sizes[number], image_sizes=())

    def view(self, name: str | None = None) -> View:
        """The view of that name, or the default one (the last).

        Raises:
            GroundingError: no view has that name.
        """
        if name is None:
            return self.views[-1]
        for view in self.views:
            if view.name == name:
                return view
        raise GroundingError(f"no view is called {name!r}; this model has {', '.join(v.name for v in self.views)}")
