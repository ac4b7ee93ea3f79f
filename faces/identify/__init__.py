"""The search for a person in embeddings of known people."""
