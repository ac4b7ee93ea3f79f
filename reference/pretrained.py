"""Loading the published weights by name into the network."""

from __future__ import annotations

import warnings

from converter.hub.pretrained import Pretrained
from reference.inception_resnet_v1 import InceptionResnetV1, check_embedding_size, fresh_logits


def load_weights(model: InceptionResnetV1, name: str, *, offline: bool = False) -> None:
    """Load the weights of a published checkpoint into a model, verified.

    A model without a classifier takes the features alone. A classifier of another number of classes is
    initialised afresh, with a warning that says so.

    Args:
        model: On any device and of any floating dtype; both stay as they are.
        name: A name or alias of the catalog, such as `vggface2`.
        offline: Never download.

    Raises:
        ValueError: The model's embedding has another size.
        UsageError: The catalog has no such name.
        RequirementError: The weights are not in the cache and cannot be had.
        SourceError: What was downloaded or cached is damaged.
    """
    weights = Pretrained(name, offline=offline)
    state_dict = weights.state_dict()
    check_embedding_size(name, weights.embedding_size, model.last_linear.out_features)
    if model.logits is None or model.logits.out_features != weights.num_classes:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith("logits.")}
        if model.logits is not None:
            model.logits.reset_parameters()
            wanted = model.logits.out_features
            warnings.warn(fresh_logits(name, weights.num_classes, wanted), stacklevel=2)
            state_dict |= model.logits.state_dict(prefix="logits.")
    model.load_state_dict(state_dict)
