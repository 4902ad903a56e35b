"""Drafts from a model: its lattice, the searches that pick a path or a tree of it."""
