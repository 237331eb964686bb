"""Decode attention over an INT8 and a float16 cache against the attention of others."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from kvfuse import ops
from torch import Tensor

from gpu_check import timing
from gpu_check.rows import Context, Row

Call = Callable[[], Tensor]

BATCHES = (1, 8, 64)
LENGTHS = (512, 1024, 4096, 32768)
HEADS, HEAD_DIM = 12, 64
ROUNDS = 40

# Goals for the INT8 cache.
FASTER = 1.8  # than float16, from so many cached tokens on; below: not slower
FASTER_FROM_TOKENS = 64 * 1024
SHARE, SHARE_AT = 0.85, (8, 32768)  # of the copy bandwidth, at this batch and length

# Root mean square of the difference from PyTorch's result, as a share of it. 8 bits cost about 0.01.
TOLERANCE = {"int8": 0.03}
OTHER_TOLERANCE = 0.005


@dataclass(frozen=True)
class Case:
    batch: int
    heads: int
    length: int

    def __str__(self) -> str:
        return f"batch {self.batch}, length {self.length}"

    def cache_bytes(self, int8: bool) -> int:
        """Bytes of K and V that one call reads, the scales included."""
        row = HEAD_DIM + 4 if int8 else 2 * HEAD_DIM
        return 2 * self.batch * self.heads * self.length * row


@dataclass(frozen=True)
class Inputs:
    """One query token and a full float16 cache, each [batch, heads, tokens, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def length(self) -> int:
        return self.k.shape[2]

    @property
    def lengths(self) -> Tensor:
        return torch.full((len(self.k),), self.length, dtype=torch.int32, device=self.k.device)


def make_inputs(case: Case, device: str) -> Inputs:
    torch.manual_seed(0)
    shapes = [(case.batch, case.heads, tokens, HEAD_DIM) for tokens in (1, case.length, case.length)]
    return Inputs(*(torch.randn(shape, dtype=torch.float16, device=device) for shape in shapes))


def own_int8(x: Inputs) -> Call:
    (k, k_scale), (v, v_scale) = ops.quantize_kv(x.k), ops.quantize_kv(x.v)
    lengths, workspace = x.lengths, ops.decode_workspace(x.q, k)
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    return lambda: ops.decode_attention(x.q, k, v, lengths, **scales, workspace=workspace)


def own_float16(x: Inputs) -> Call:
    lengths, workspace = x.lengths, ops.decode_workspace(x.q, x.k)
    return lambda: ops.decode_attention(x.q, x.k, x.v, lengths, workspace=workspace)


def torch_sdpa(x: Inputs) -> Call:
    return lambda: torch.nn.functional.scaled_dot_product_attention(x.q, x.k, x.v)


def flash_attn(x: Inputs) -> Call:
    attend = importlib.import_module("flash_attn").flash_attn_with_kvcache
    q, k, v = (part.transpose(1, 2).contiguous() for part in (x.q, x.k, x.v))
    lengths = x.lengths
    return lambda: attend(q, k, v, cache_seqlens=lengths).transpose(1, 2)


def flashinfer(x: Inputs) -> Call:
    """Pages of 16 tokens in order; the plan, which the host makes from the lengths, is not timed."""
    module = importlib.import_module("flashinfer")
    page, (batch, heads, length, head_dim) = 16, x.k.shape
    pages, device = length // page, x.k.device
    cache = torch.stack(
        [part.transpose(1, 2).reshape(batch * pages, page, heads, head_dim) for part in (x.k, x.v)], 1
    )
    scratch = torch.zeros(256 * timing.MIB, dtype=torch.uint8, device=device)
    wrapper = module.BatchDecodeWithPagedKVCacheWrapper(scratch, "NHD")
    integers = {"dtype": torch.int32, "device": device}
    wrapper.plan(
        torch.arange(0, (batch + 1) * pages, pages, **integers),
        torch.arange(batch * pages, **integers),
        torch.full((batch,), page, **integers),
        heads,
        heads,
        head_dim,
        page,
        q_data_type=torch.float16,
        kv_data_type=torch.float16,
    )
    q = x.q[:, :, 0].contiguous()
    return lambda: wrapper.run(q, cache).unsqueeze(2)


OWN = {"int8": own_int8, "float16": own_float16}
PEERS = {"sdpa": torch_sdpa, "flash_attn": flash_attn, "flashinfer": flashinfer}  # the last two: packages


def too_large(case: Case, device: str) -> str:
    """Why the caches of all sides do not fit the device's memory; empty if they do."""
    if device != "cuda":
        return ""
    installed = sum(importlib.util.find_spec(name) is not None for name in PEERS)
    needed = case.cache_bytes(int8=True) + case.cache_bytes(int8=False) * (2 + 2 * installed)
    free = torch.cuda.mem_get_info()[0]
    return "" if needed <= free else f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


def make_sides(x: Inputs) -> tuple[dict[str, Call], dict[str, str]]:
    """What can be timed, and why the rest can't. Our own sides must work."""
    sides, missing = {name: make(x) for name, make in OWN.items()}, {}
    for name, make in PEERS.items():
        try:
            sides[name] = make(x)
            sides[name]()
        except ModuleNotFoundError:
            missing[name] = "not installed"
        except Exception as error:  # another project's code: whatever it raises, the others are measured
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            sides.pop(name, None)
    return sides, missing


def wrong_results(sides: dict[str, Call]) -> dict[str, float]:
    """Sides that are farther from PyTorch's result than their rounding explains, and how far."""
    want = sides["sdpa"]().float()
    wrong = {}
    for name, call in sides.items():
        error = float((call().float() - want).square().mean().sqrt() / want.square().mean().sqrt())
        if not error <= TOLERANCE.get(name, OTHER_TOLERANCE):
            wrong[name] = error
    return wrong


def judge(case: Case, faster: float, share: float) -> tuple[str, bool]:
    """The goals of this case, and whether they are met."""
    least = FASTER if case.batch * case.length >= FASTER_FROM_TOKENS else 1.0
    goal, met = f"int8 >= {least}x float16", faster >= least
    if (case.batch, case.length) == SHARE_AT:
        goal, met = f"{goal}, >= {SHARE} of copy", met and share >= SHARE
    return goal, met


def make_row(case: Case, samples: dict[str, list[float]], missing: dict[str, str], copy_rate: float) -> Row:
    times = {name: timing.summary(values) for name, values in samples.items()}
    ratios = {name: timing.ratio(samples[name], samples["int8"]) for name in samples if name != "int8"}
    shares = {
        name: case.cache_bytes(name == "int8") / (time["median"] * 1e-6) / copy_rate
        for name, time in times.items()
    }
    goal, met = judge(case, ratios["float16"]["value"], shares["int8"])
    against = [f"{r['value']:.2f}x [{r['low']:.2f}, {r['high']:.2f}] {name}" for name, r in ratios.items()]
    text = f"int8 {times['int8']['median']:.1f} us = {shares['int8']:.2f} of copy, {', '.join(against)}"
    data = {
        "case": asdict(case) | {"head_dim": HEAD_DIM},
        "time_us": times,
        "int8_times_as_fast_as": ratios,
        "copy_share": shares,
        "copy_bytes_per_s": copy_rate,
        "samples_us": samples,
        "missing": missing,
    }
    return Row(str(case), text, goal=goal, met=met, data=data)


def measure(context: Context, clock: timing.Clock, case: Case, copy_rate: float) -> Row:
    if reason := too_large(case, context.device):
        return Row(str(case), reason, status="skipped")
    sides, missing = make_sides(make_inputs(case, context.device))
    wrong = wrong_results(sides)
    if own := {name: error for name, error in wrong.items() if name in OWN}:
        errors = ", ".join(f"{name} is off by {error:.2g} of the result" for name, error in own.items())
        return Row(str(case), errors, status="wrong")
    for name, error in wrong.items():
        del sides[name]
        missing[name] = f"off by {error:.2g} of the result"
    rounds = 3 if context.quick else ROUNDS
    return make_row(case, timing.sample_in_turn(sides, clock, rounds, context.deadline), missing, copy_rate)


@contextmanager
def as_served() -> Iterator[None]:
    """Without gradients, and without the check of the lengths, for which the host would wait."""
    with torch.inference_mode(), ops.trust_lengths():
        yield


def run(context: Context) -> Iterator[Row]:
    clock = timing.make_clock(context.device)
    heads, batches, lengths = (2, (1, 2), (64,)) if context.quick else (HEADS, BATCHES, LENGTHS)
    copy_rate = timing.copy_bandwidth(context.device, timing.MIB if context.quick else timing.GIB, rounds=10)
    for case in [Case(batch, heads, length) for batch in batches for length in lengths]:
        if time.monotonic() > context.deadline:
            yield Row(str(case), "no time was left", status="skipped")
            continue
        with as_served():
            row = measure(context, clock, case, copy_rate)
        yield row
        if context.device == "cuda":
            torch.cuda.empty_cache()
