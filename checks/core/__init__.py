"""What the checks share: inputs, activations, models, thresholds and the form of a judgement."""
