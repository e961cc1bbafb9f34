"""Errors that a person caused and can mend. Commands print them as one line and exit with 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: the message says what was expected, what came, and where."""


class GateError(RuntimeError):
    """A start-up gate failed: the run would train on wrong numbers. The message names the gate."""


class Diverged(RuntimeError):
    """Training has come to an end of its own: optimiser step after optimiser step has a gradient
    that is not finite."""


class StaleFence(RuntimeError):
    """The writer of a checkpoint is a zombie: another program has taken the run over, in a newer
    fence."""


def one_line(error: object) -> str:
    """The message of an error without its line ends."""
    return " ".join(str(error).split())


def kind_and_line(error: BaseException) -> str:
    """What kind of error it is, and its message without line ends."""
    return f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def as_os_errors(what: str) -> Iterator[None]:
    """Each storage package has error classes of its own: they become OSError. what: was done."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{what}: {kind_and_line(error)}") from error
