"""The resources of this machine that the process may really use. Every number has its source. torch is loaded only in a child.

The package is callable, because `batchcal.detect` is both this package and the public function: `batchcal.detect()` is
`batchcal.detect.detect.detect()`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchcal.detect.environment import Environment
    from batchcal.detect.torch_answer import TorchAnswer


class _CallableModule(ModuleType):
    def __call__(
        self,
        *,
        root: Path = Path("/"),
        environ: Mapping[str, str] | None = None,
        ask_child: Callable[[], TorchAnswer] | None = None,
    ) -> Environment:
        from batchcal.detect.detect import detect

        return detect(root=root, environ=environ, ask_child=ask_child)


sys.modules[__name__].__class__ = _CallableModule
