"""The parts that the checks share: inputs, activations, models, both sides, thresholds, judgements."""
