"""Start of every Python process of a measured command: this folder is first in its PYTHONPATH.

It does nothing until torch is imported, and then imports the observer. It imports only modules that Python has loaded by then, so
that a start of Python takes no longer. The `sitecustomize` of the user or of the system, which this file hides, runs as usual.
"""

from __future__ import annotations

import os
import sys

OBSERVER = "_batchcal_observer"
SOCKET_VARIABLE = "BATCHCAL_PROBE_SOCKET"
FOLDER = os.path.dirname(os.path.abspath(__file__))


class TorchFinder:
    """Finds torch as Python would, and observes it as soon as it is imported."""

    def __init__(self) -> None:
        self._searches = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Return the module specification of torch, with a loader that starts the observer. None: another module."""
        if name != "torch" or self._searches:
            return None
        self._searches = True
        try:
            for finder in sys.meta_path:
                spec: object = finder.find_spec(name, None, None)
                loader: object = getattr(spec, "loader", None)
                if loader is not None:
                    setattr(spec, "loader", TorchLoader(loader))  # noqa: B010 - the type of `spec` belongs to Python
                    return spec
        finally:
            self._searches = False
        return None


class TorchLoader:
    """The loader of torch. After the import it gives its place back to the original loader."""

    def __init__(self, loader: object) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        value: object = getattr(self._loader, name)
        return value

    def exec_module(self, module: object) -> None:
        """Import torch, then observe it. An error of the observer is not an error of the user's program."""
        call(getattr(self._loader, "exec_module", None), module)
        try:
            setattr(module, "__loader__", self._loader)  # noqa: B010
            setattr(getattr(module, "__spec__", None), "loader", self._loader)  # noqa: B010
            sys.path.insert(0, FOLDER)
            try:
                observer = __import__(OBSERVER)
            finally:
                sys.path.remove(FOLDER)
            call(getattr(observer, "observe", None))
        except Exception:  # noqa: BLE001, S110 - the parent reports that it does not hear of this process
            pass


def call(function: object, *arguments: object) -> None:
    """Call a function whose type belongs to Python or to the observer."""
    if callable(function):
        function(*arguments)


def import_hidden() -> None:
    """Import the `sitecustomize` that this file hides."""
    own = sys.modules[__name__]
    sys.modules["_batchcal_sitecustomize"] = own
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != FOLDER]
    del sys.modules[__name__]
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, own)


if __name__ == "sitecustomize":
    if SOCKET_VARIABLE in os.environ:
        call(sys.meta_path.insert, 0, TorchFinder())
    import_hidden()
