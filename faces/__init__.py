"""The network in use: from photographs to faces, and from faces to decisions."""
