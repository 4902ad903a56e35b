"""Errors: the base class of all that this package raises because of what a user gave it."""

from __future__ import annotations


class DllmError(ValueError):
    """Bad input: the message names the value, what was expected and the known choices."""


class LoadError(DllmError):
    """A checkpoint, or the name of one, that cannot be loaded."""
