"""Where everything of a whole text sits: positions, patches, and which latent each byte reads. NumPy only.

Worked example, "BLT" after BOS with boundaries after BOS, B and T:

    byte            BOS  B  L  T
    closes           1   1  0  1
    patch_of_byte    0   1  2  2
    latent_of_byte   0   1  1  2     the last byte of a patch already reads its own patch's latent
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bltcli.config import EncoderConfig, PatcherConfig
from bltcli.ngrams import hash_rows
from bltcli.patcher import BoolArray, closes_patch
from bltcli.vocab import BOS, IdArray


@dataclass(frozen=True)
class Layout:
    """Rows of packed documents, each document from its own BOS. N bytes, M patches, L bytes per patch (padded)."""

    ids: IdArray  # [b, N]
    positions: IdArray  # [b, N] in the document
    documents: IdArray  # [b, N] number of the document within the row
    hash_index: IdArray  # [b, N, tables]
    closes: BoolArray  # [b, N]
    latent_of_byte: IdArray  # [b, N]
    patch_index: IdArray  # [b, M, L] byte numbers of each patch
    patch_len: IdArray  # [b, M]; 1 for padding
    patch_positions: IdArray  # [b, M] in the document
    patch_documents: IdArray  # [b, M]; -1 for padding


def document_positions(ids: IdArray) -> tuple[IdArray, IdArray]:
    """Positions in the document and document numbers of `ids` [b, N]; BOS opens a document, so does column 0."""
    starts = ids == BOS
    starts[:, 0] = True
    index = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return positions, np.cumsum(starts, axis=1) - 1


def text_closes(entropy_nats: np.ndarray, positions: IdArray, config: PatcherConfig) -> BoolArray:
    """`closes_patch` for packed rows, bool [b, N]."""
    closes = np.zeros(positions.shape, dtype=np.bool_)
    for row in range(positions.shape[0]):
        starts = np.flatnonzero(positions[row] == 0).tolist()
        for start, end in zip(starts, [*starts[1:], positions.shape[1]], strict=True):
            closes[row, start:end] = closes_patch(entropy_nats[row, start:end], position=0, open_bytes=0, config=config)
    return closes


def make_layout(ids: IdArray, closes: BoolArray, encoder: EncoderConfig) -> Layout:
    """Lay out packed rows `ids` [b, N] whose patches end where `closes` [b, N] says."""
    positions, documents = document_positions(ids)
    opens = np.concatenate([np.ones_like(closes[:, :1]), closes[:, :-1]], axis=1) | (positions == 0)
    patch_of_byte = np.cumsum(opens, axis=1) - 1
    patches = int(patch_of_byte[:, -1].max()) + 1
    rows, columns = np.nonzero(opens)
    patch = patch_of_byte[rows, columns]
    lengths = np.zeros((len(ids), patches), dtype=np.int64)
    np.add.at(lengths, (np.arange(len(ids))[:, None], patch_of_byte), 1)
    starts = np.zeros_like(lengths)
    starts[rows, patch] = columns
    patch_documents = np.full_like(lengths, -1)
    patch_documents[rows, patch] = documents[rows, columns]
    # a patch's position: its number minus the number of its document's first patch
    first = np.zeros_like(lengths)
    bos = positions[rows, columns] == 0
    first[rows[bos], patch[bos]] = patch[bos]
    patch_len = np.maximum(lengths, 1)
    within = np.arange(int(patch_len.max()))
    return Layout(
        ids=ids,
        positions=positions,
        documents=documents,
        hash_index=hash_rows(ids, positions, encoder),
        closes=closes,
        latent_of_byte=np.where(closes, patch_of_byte, patch_of_byte - 1),
        patch_index=starts[:, :, None] + np.minimum(within, patch_len[:, :, None] - 1),
        patch_len=patch_len,
        patch_positions=np.arange(patches) - np.maximum.accumulate(first, axis=1),
        patch_documents=patch_documents,
    )
