"""Training of a classifier of people, or of embeddings by triplets."""
