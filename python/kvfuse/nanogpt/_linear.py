"""What ``nn.Linear`` computes, by the operator that reads its weights fastest."""

from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvfuse import ops


def linear(module: nn.Module, x: Tensor, features: int | None = None) -> Tensor:
    """``module(x)``, or the first ``features`` of its columns."""
    if not _is_plain(module):
        return module(x)[..., :features]
    weight, bias = module.weight[:features], module.bias if module.bias is None else module.bias[:features]
    return ops.linear(x, weight, bias) if _suits_fused(x, module) else F.linear(x, weight, bias)


def linear_gelu(module: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """``activation(module(x))``, in one pass where it is GELU."""
    if _is_plain(module) and _suits_fused(x, module) and type(activation) is nn.GELU:
        gelu: Literal["exact", "tanh"] = "tanh" if activation.approximate == "tanh" else "exact"
        return ops.linear(x, module.weight, module.bias, gelu=gelu)
    return activation(linear(module, x))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """False for what adds to a linear layer, such as adapters, parametrisations and hooks."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def _suits_fused(x: Tensor, module: nn.Linear) -> bool:
    """Not where gradients are recorded: the operator has none."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return plain and x.is_cpu and x.dtype == torch.float32 and module.weight.is_contiguous()
