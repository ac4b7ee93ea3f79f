"""Verification and classification of faces, measured by the protocol of davidsandberg/facenet."""
