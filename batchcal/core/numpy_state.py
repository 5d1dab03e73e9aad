"""The state of numpy's global generator, without importing numpy."""

from __future__ import annotations

import sys


def numpy_state() -> list[object] | None:
    """The state of numpy's global generator as plain values. None: numpy is not loaded."""
    get: object = getattr(getattr(sys.modules.get("numpy"), "random", None), "get_state", None)
    state = get() if callable(get) else None
    if not isinstance(state, tuple):
        return None
    return [part.tolist() if hasattr(part, "tolist") else part for part in state]


def restore_numpy(state: object) -> None:
    """Restore the state that `numpy_state` returned. No effect if numpy is not loaded now, or was not loaded then."""
    put: object = getattr(getattr(sys.modules.get("numpy"), "random", None), "set_state", None)
    if callable(put) and isinstance(state, list):
        put(tuple(state))
