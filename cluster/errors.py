"""Failures that this package detects."""

from __future__ import annotations


class PlacementError(Exception):
    """The cluster lacks resources that were asked for; the message says which. Mendable by a person."""


class GangError(RuntimeError):
    """A rank failed or missed its deadline; the whole gang was ended."""


class PublishError(RuntimeError):
    """A worker holds other weights than those published."""


def cause(error: BaseException) -> BaseException:
    """What a remote call really failed of: Ray wraps it, and some exceptions don't survive pickling."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else error
