"""Image embeddings of a segmenter on disk: an image is encoded once for all prompts that are ever tried on it."""

from __future__ import annotations

from pathlib import Path

from core.masks import Segmenter
from core.provenance import segmenter_identity
from core.record_folder import Record, RecordFolder
from core.segmenters.backend import Embedding


class EmbeddingFolder:
    """Embeddings by the pixels they are of: float32 tensors by name. Segment Anything has one, 4 MB an image for the
    released checkpoints; SAM 2 has features of three levels, 17 MB. They come back bit for bit.
    """

    def __init__(self, directory: str | Path, segmenter: Segmenter):
        """Open a folder, or create it.

        Raises:
            GroundingError: it was begun by another model.
        """
        config = {"segmenter": segmenter_identity(segmenter), "what": "image embeddings"}
        self._records: RecordFolder[Record] = RecordFolder(directory, config)

    def read(self, key: str) -> Embedding | None:
        """The embedding of an image, None where it has none yet.

        Raises:
            GroundingError: a damaged file.
        """
        return dict(self._records.read(key).tensors) if self._records.has(key) else None

    def write(self, key: str, embedding: Embedding) -> None:
        """Keep the embedding of an image."""
        self._records.write(key, Record({name: tensor.cpu() for name, tensor in embedding.items()}, {}))


def keep_embeddings(segmenter: Segmenter, directory: str | Path) -> None:
    """From now on the segmenter keeps every image's embedding in a folder, and takes it from there where it is known.

    Raises:
        GroundingError: the folder was begun by another model.
    """
    segmenter.embeddings = EmbeddingFolder(directory, segmenter)
