"""Alignment: the faces of a folder of photographs as crops and a table."""
