"""Fused kernels that make a quantised KV cache faster than a full-precision one, as PyTorch operators.

Importing this package registers ``torch.ops.kvfuse.*``; ``kvfuse.ops`` documents them.
"""

from typing import Any

from kvfuse import _library

_C = _library.load()

from kvfuse import ops, versions  # noqa: E402
from kvfuse._self_check import self_check  # noqa: E402
from kvfuse.cache import KVCache  # noqa: E402
from kvfuse.layer_cache import LayerCache  # noqa: E402


def build_info() -> dict[str, Any]:
    """What was built and which kernels run.

    Keys: ``version``, ``torch_version`` (built against), ``compiler``, ``available_isas`` (of this machine,
    worst first), ``active_isa`` and ``supported_head_dims`` (of the CPU). Of the CUDA operators: ``cuda``
    (whether they were built and are there), ``cuda_architectures`` (such as "80, 90+PTX"; empty if they were
    not built), ``cuda_loaded`` and ``cuda_head_dims``.

    Raises:
        RuntimeError: the environment variable KVFUSE_ISA names an instruction set that is unknown or missing.
    """
    return _C.build_info()


__version__: str = _C.__version__

__all__ = ["KVCache", "LayerCache", "__version__", "build_info", "ops", "self_check", "versions"]
