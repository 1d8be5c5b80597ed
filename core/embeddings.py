"""Image embeddings of a segmenter on disk: an image is encoded once for all prompts that are ever tried on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.masks import Segmenter
from core.provenance import segmenter_identity
from core.record_folder import Record, RecordFolder


class EmbeddingFolder:
    """Embeddings by the pixels they are of: float32 [1, c, h, w], 4 MB an image for the released checkpoints. They come
    back bit for bit.
    """

    def __init__(self, directory: str | Path, segmenter: Segmenter):
        """Open a folder, or create it.

        Raises:
            GroundingError: it was begun by another model.
        """
        config = {"segmenter": segmenter_identity(segmenter), "what": "image embeddings"}
        self._records: RecordFolder[Record] = RecordFolder(directory, config)

    def read(self, key: str) -> Tensor | None:
        """The embedding of an image, None where it has none yet.

        Raises:
            GroundingError: a damaged file.
        """
        return self._records.read(key).tensors["embedding"] if self._records.has(key) else None

    def write(self, key: str, embedding: Tensor) -> None:
        """Keep the embedding of an image."""
        self._records.write(key, Record({"embedding": embedding.to("cpu", torch.float32)}, {}))


def keep_embeddings(segmenter: Segmenter, directory: str | Path) -> None:
    """From now on the segmenter keeps every image's embedding in a folder, and takes it from there where it is known.

    Raises:
        GroundingError: the folder was begun by another model.
    """
    segmenter.embeddings = EmbeddingFolder(directory, segmenter)
