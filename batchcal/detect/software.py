"""Software: system, C library, Python, torch, and variables that change the cost of memory and threads. Does not load torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Final

from batchcal.detect.environment import Software
from batchcal.machine.roots import Root

_ALLOCATOR_PREFIXES: Final = ("MALLOC_", "TCMALLOC_", "MIMALLOC_", "_RJEM_MALLOC_")
_ALLOCATOR_NAMES: Final = frozenset(
    {
        "LD_PRELOAD",
        "GLIBC_TUNABLES",
        "PYTHONMALLOC",
        "THP_MEM_ALLOC_ENABLE",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_HIP_ALLOC_CONF",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    }
)
_THREAD_PREFIXES: Final = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "VECLIB_")
_THREAD_NAMES: Final = frozenset({"LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"})


def read_software(root: Root, environ: Mapping[str, str], *, cuda: str = "") -> Software:
    """Read the software. `cuda` is the version that torch was built with, if torch was queried."""
    release = root.read("/proc/sys/kernel/osrelease") or platform.release()
    system = "Linux" if root.exists("/proc/sys/kernel/osrelease") else platform.system()
    return Software(
        os=f"{system} {release}".strip(),
        libc=libc(),
        python=platform.python_version(),
        torch=version_of("torch"),
        cuda=cuda,
        allocator_environment=chosen(environ, _ALLOCATOR_PREFIXES, _ALLOCATOR_NAMES),
        thread_environment=chosen(environ, _THREAD_PREFIXES, _THREAD_NAMES),
    )


def chosen(environ: Mapping[str, str], prefixes: tuple[str, ...], names: frozenset[str]) -> dict[str, str]:
    """Return the variables that have one of `prefixes` or `names`, sorted by name."""
    return {name: environ[name] for name in sorted(environ) if name.startswith(prefixes) or name in names}


def libc() -> str:
    """Return `glibc 2.36` or `musl 1.2.5`. Empty: unknown."""
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return " ".join(filter(None, platform.libc_ver()))


def version_of(distribution: str) -> str:
    """Return the version of an installed distribution from its metadata. Empty: not installed."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
