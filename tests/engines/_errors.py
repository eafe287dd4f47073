"""What can go wrong with an engine."""

from __future__ import annotations


class EngineFailed(Exception):
    """An engine did not start, ended by itself, or did not do what it was told."""
