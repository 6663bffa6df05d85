"""The errors a user can cause or meet, each with the exit code that the command line gives it."""

from __future__ import annotations


class BltError(Exception):
    """One clear line: what is wrong, both values, and the fix."""

    exit_code = 1


class UsageError(BltError):
    """An option or argument that cannot be honoured."""

    exit_code = 2


class ModelError(BltError):
    """A checkpoint, bundle or engine that is missing, broken, refused, or disagrees with itself."""

    exit_code = 3
