"""Texts as vectors: encoders that are fitted on training texts, read from a file or taken from a hub."""
