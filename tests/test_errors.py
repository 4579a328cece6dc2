"""The tree of errors: what is caught by what, and what they say."""

from __future__ import annotations

import pickle

import pytest

import nstat_async
from nstat_async import (
    BackendUnavailableError,
    ConcurrentReadError,
    IncompleteSnapshotError,
    MonitorClosedError,
    NstatError,
    ProtocolError,
    RecordingError,
    RequestError,
    UnavailableReason,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (UsageError("x"), (NstatError, ValueError)),
        (MonitorClosedError("x"), (UsageError,)),
        (ConcurrentReadError("x"), (UsageError,)),
        (ProtocolError("x"), (NstatError,)),
        (RecordingError("x"), (ProtocolError,)),
        (RequestError("x", 1), (NstatError,)),
        (BackendUnavailableError("x", UnavailableReason.MISSING, "y"), (NstatError,)),
    ],
)
def test_each_error_is_what_the_tree_says(error, bases):
    for base in bases:
        assert isinstance(error, base)
    others = {ProtocolError, RequestError, BackendUnavailableError, UsageError} - set(type(error).__mro__)
    assert not any(isinstance(error, other) for other in others)


def test_errors_carry_their_facts_and_say_them():
    error = ProtocolError("message length 3 is less than a header", offset=16, raw=bytes(40))
    assert (error.reason, error.offset, error.raw) == ("message length 3 is less than a header", 16, bytes(40))
    assert str(error) == "message length 3 is less than a header (at byte 16 of 40)"
    assert str(RecordingError("no recording")) == "no recording"
    error = RequestError("ADD_ALL_SRCS tcp", 1, "needs root")
    assert (error.operation, error.errno, error.detail) == ("ADD_ALL_SRCS tcp", 1, "needs root")
    assert str(error) == "ADD_ALL_SRCS tcp: needs root"
    assert str(RequestError("x", 2)) == "x: the kernel answered error 2"
    error = BackendUnavailableError("kctl", UnavailableReason.PLATFORM, "this is Linux")
    assert str(error) == "backend 'kctl' is unavailable (platform): this is Linux"


@pytest.mark.parametrize(
    "error",
    [
        RequestError("x", 1, "y"),
        BackendUnavailableError("kctl", UnavailableReason.KERNEL, "y"),
        UsageError("x"),
        IncompleteSnapshotError((), "y"),
    ],
)
def test_errors_cross_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_every_public_error_is_one_of_the_tree():
    public = [getattr(nstat_async, name) for name in nstat_async.__all__ if name.endswith("Error")]
    assert all(issubclass(cls, NstatError) for cls in public)
    assert len(public) == 10
