# SPDX-License-Identifier: Apache-2.0
"""The exception family of the project; each class carries the exit status its script ends with.

    BertError            1  the work failed
    ├─ InputError        1  a file or text the user gave cannot be used
    ├─ UsageError        2  the command line (or the arguments of a call) contradicts itself
    ├─ MissingDependency 3  a package, library or backend is not installed here
    └─ EngineMismatch    4  the engine does not fit this machine, model or request

A message is one sentence in three parts: what happened, with which values, what to do next.
Only `helpers.cli` prints them.
"""


class BertError(Exception):
    """The work failed for a reason that the message explains to the user."""

    status = 1


class InputError(BertError):
    """A file or a text that the user gave is missing, corrupt or unusable."""


class UsageError(BertError):
    """The command line is wrong."""

    status = 2


class MissingDependency(BertError):
    """Something that must be installed first is not; the message names the install command."""

    status = 3


class EngineMismatch(BertError):
    """The engine is of another machine, model or shape than the request."""

    status = 4
