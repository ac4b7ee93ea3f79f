"""The command face-controls: faults between a photograph and a decision, planted and looked for."""
