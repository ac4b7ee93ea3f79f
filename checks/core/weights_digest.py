"""The SHA-256 of a network's weights, which is the same for every file and format that holds them."""

from __future__ import annotations

import hashlib

from checks.core.types import Arrays
from converter.network_names import COUNTER


def weights_digest(state_dict: Arrays) -> str:
    """Compute the SHA-256 of the weights that the embeddings depend on, in hexadecimal.

    It covers the key and the values of every tensor in the state_dict's order, little-endian, but for the
    batch counters and the classifier. So it is the same for every file and format that holds these weights.

    Args:
        state_dict: Key to float32 array, of the whole network.
    """
    digest = hashlib.sha256()
    for key, array in state_dict.items():
        if not key.endswith(COUNTER) and not key.startswith("logits."):
            digest.update(key.encode())
            digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
