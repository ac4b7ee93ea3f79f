"""Detection: the faces of photographs, as facenet's own detector finds them."""
