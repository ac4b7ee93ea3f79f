"""Loading published weights by name into an existing network."""

from __future__ import annotations

import warnings

from converter.hub.pretrained import load_pretrained
from reference.inception_resnet_v1 import InceptionResnetV1, check_embedding_size, other_classes_message


def load_weights(model: InceptionResnetV1, name: str, *, offline: bool = False) -> None:
    """Load the verified weights of a published checkpoint into a model.

    A model without a classifier takes the other weights. A classifier of another number of classes is
    randomly initialised, with a warning.

    Args:
        model: Model of any device and any floating dtype, which do not change.
        name: A name or alias of the catalog, such as `vggface2`.
        offline: Never download.

    Raises:
        ValueError: The model's embedding has another size.
        UsageError: The catalog has no such name.
        RequirementError: The weights are not in the cache and cannot be downloaded.
        SourceError: A downloaded or cached file is damaged.
    """
    weights = load_pretrained(name, offline=offline)
    state_dict = weights.state_dict
    check_embedding_size(name, weights.embedding_size, model.last_linear.out_features)
    if model.logits is None or model.logits.out_features != weights.num_classes:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith("logits.")}
        if model.logits is not None:
            model.logits.reset_parameters()
            classes = model.logits.out_features
            warnings.warn(other_classes_message(name, weights.num_classes, classes), stacklevel=2)
            state_dict |= model.logits.state_dict(prefix="logits.")
    model.load_state_dict(state_dict)
