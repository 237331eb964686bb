"""Finds and loads the native libraries: beside the installed package, or in a checkout's build folder."""

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parents[1]
OPERATORS = "libkvfuse_ops.so"
BINDINGS = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
TORCH_VERSION = "torch_version.txt"  # that the libraries beside it were built against


def folder() -> Path:
    """The folder that holds the libraries.

    In a checkout this is KVFUSE_BUILD_DIR (relative to the checkout) or build/cpu; elsewhere, and in a
    checkout that was installed in place and has no build/cpu, it is the package itself.
    """
    places = [PACKAGE]
    if (CHECKOUT / "CMakeLists.txt").is_file():
        chosen = os.environ.get("KVFUSE_BUILD_DIR")
        places = [CHECKOUT / chosen] if chosen else [CHECKOUT / "build/cpu", PACKAGE]
    for place in places:
        if (place / OPERATORS).is_file() and (place / TORCH_VERSION).is_file():
            return place
    raise ImportError(
        f"kvfuse: expected {OPERATORS} and {TORCH_VERSION} in {' or '.join(map(str, places))}, found none "
        "(build it with scripts/bootstrap in a checkout, or install with pip install .)"
    )


def check_torch(built_with: str, found: str) -> None:
    """Raises ImportError unless both are one minor release: PyTorch's C++ interface changes between them."""
    if _minor_release(built_with) != _minor_release(found):
        wanted = ".".join(map(str, _minor_release(built_with)))
        raise ImportError(
            f"kvfuse: expected PyTorch {wanted}.* (built with {built_with}), found {found} "
            f"(rebuild kvfuse with pip install ., or pip install 'torch=={wanted}.*')"
        )


def _minor_release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def load() -> ModuleType:
    """Registers the operators and returns the bindings, the module ``kvfuse._C``.

    Those for CUDA only where they were built and there is a GPU: nobody else needs the code.
    """
    place = folder()
    check_torch((place / TORCH_VERSION).read_text().strip(), torch.__version__)
    try:
        torch.ops.load_library(place / OPERATORS)
    except OSError as error:
        raise ImportError(
            f"kvfuse: {place / OPERATORS} does not load ({error}); rebuild kvfuse with this PyTorch"
        ) from error
    bindings = _import_bindings(place / BINDINGS)
    if bindings.has_cuda_operators() and torch.cuda.is_available():
        try:
            bindings.load_cuda_operators()
        except RuntimeError as error:
            raise ImportError(f"kvfuse: {error}") from error
    return bindings


def _import_bindings(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(
            f"kvfuse: expected {path}, found none (build kvfuse with this Python, {sys.version.split()[0]})"
        )
    name = "kvfuse._C"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(path)))
    loader.exec_module(module)
    sys.modules[name] = module
    return module
