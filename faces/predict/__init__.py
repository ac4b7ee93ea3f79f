"""The names that a trained classifier gives to the faces of photographs."""
