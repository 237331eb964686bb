"""Measures what this machine does: the rates that ``kvfuse.roofline.Calibration`` predicts from.

Points are sampled in turn, round by round, so that each meets the same moments of a machine whose speed
changes. What else the machine does only lengthens times, so of each point the lower quartile counts, and of
looks at the read bandwidth the best of each round: its median over the rounds is the usual bandwidth, which
the times belong to, and the best of all is the roof.
"""

import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kvfuse import _C
from kvfuse.model import Gpt2, ModelConfig
from kvfuse.roofline.measure import Bench, Timed
from kvfuse.roofline.measured import Calibration

Progress = Callable[[int, int, str], None]  # done, of how many, what

_STEP_ROWS = (1, 2, 4, 8, 16, 32, 64)  # sequences that the runner takes through a fused step
_PASS_ROWS = (1, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024)
_HEAD_ROWS = 8  # a pass computes the logits of one token a sequence
_WIDTHS = (768, 1600)  # of gpt2 and gpt2-xl
_VOCAB = 50257
_HEADS, _HEAD_DIM = 12, 64
_SLOWEST_S = 0.5  # a product that takes longer is not tried with more rows: 16-bit ones may be emulated
_ELEMENTWISE_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    widths: tuple[int, ...] = _WIDTHS  # after the first only in the first format
    step_rows: tuple[int, ...] = _STEP_ROWS
    pass_rows: tuple[int, ...] = _PASS_ROWS
    vocab: int = _VOCAB
    # (batch, kv_len) of decode steps; no two with as many bytes, by which they are told apart
    decode: tuple[tuple[int, int], ...] = ((1, 16), (1, 64), (1, 256), (1, 1024), (8, 512), (8, 1000))
    prompts: tuple[int, ...] = (16, 64, 256, 1024)
    rounds: int = 8


QUICK = Plan(
    precisions=("fp32",),
    widths=(768,),
    step_rows=(1, 8, 64),
    pass_rows=(1, 32, 128, 512),
    decode=((1, 64), (1, 1024)),
    prompts=(64, 512),
    rounds=3,
)


def default_path() -> Path:
    """Where the calibration of this machine is kept: calibration.json in the user's configuration folder.

    That is $XDG_CONFIG_HOME/kvfuse, or ~/.config/kvfuse.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "kvfuse" / "calibration.json"


def save(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Writes the file as a whole or not at all, with the folders above it.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(calibration.json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def calibrate(
    plan: Plan | None = None, *, device: str = "cpu", progress: Progress | None = None
) -> Calibration:
    """Measures the machine; takes some minutes, in which the machine should do nothing else.

    Ctrl-C ends it between two samples: the measuring runs on a thread of its own, since a signal must not
    meet oneDNN on its stack.

    Raises:
        RuntimeError: the device is not there, or has no CUDA operators.
    """
    if device != "cpu" and not _C.build_info()["cuda_loaded"]:
        raise RuntimeError(f"roofline: calibrate: expected a GPU with CUDA operators for {device}, got none")
    run = _Run(plan or Plan(), device, progress)
    worker = threading.Thread(target=run.measure)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.1)
    finally:
        run.stop.set()
        worker.join()
    if run.error is not None:
        raise run.error
    return Calibration(json.dumps(run.result), "calibration")


@dataclass
class _Point:
    """A list of the calibration that an entry goes to, the entry but for its seconds, and its clock."""

    kind: str
    entry: dict[str, Any]
    timed: Timed
    dropped: bool = False


@dataclass
class _Run:
    plan: Plan
    device: str
    progress: Progress | None
    stop: threading.Event = field(default_factory=threading.Event)
    result: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def measure(self) -> None:
        """Fills ``result``, or ``error``; leaves both alone if it was stopped."""
        try:
            self._measure()
        except BaseException as error:  # for the thread that waits
            self.error = error

    def _measure(self) -> None:
        bench = Bench(self.device)
        points = [*self._products(bench), *self._attentions(bench)]
        elementwise = _Elementwise(bench)
        overhead = _overhead(bench)
        best_looks: list[float] = []  # of each round
        total = self.plan.rounds * len(points)
        for number in range(self.plan.rounds):
            looks = []
            for index, point in enumerate(points):
                if self.stop.is_set():
                    return
                if index % 8 == 0:
                    looks.append(bench.bandwidth())
                if not point.dropped:
                    point.timed.sample()
                    self._drop_slower(points, point)
                if self.progress is not None:
                    self.progress(number * len(points) + index + 1, total, point.kind)
            elementwise.timed.sample()
            overhead.sample()
            best_looks.append(max(looks))
        self.result = self._file(points, best_looks, elementwise, overhead)

    def _drop_slower(self, points: list[_Point], slow: _Point) -> None:
        if slow.timed.seconds < _SLOWEST_S or "rows" not in slow.entry:
            return
        same = ("precision", "in", "out")
        for point in points:
            if point.kind == slow.kind and all(point.entry[key] == slow.entry[key] for key in same):
                point.dropped |= point.entry["rows"] > slow.entry["rows"]

    def _shapes(self, precision: str) -> list[tuple[int, int, bool]]:
        """(in, out, whether it is the head) of the models' products."""
        shapes = []
        all_widths = precision == self.plan.precisions[0]
        for width in self.plan.widths if all_widths else self.plan.widths[:1]:
            for out in (3 * width, width, 4 * width):
                shapes.append((width, out, False))
            shapes.append((4 * width, width, False))
        return [*shapes, (self.plan.widths[0], self.plan.vocab, True)]

    def _products(self, bench: Bench) -> list[_Point]:
        points = []
        for precision in self.plan.precisions:
            for in_, out, head in self._shapes(precision):
                rows = [one for one in self.plan.pass_rows if not head or one <= _HEAD_ROWS]
                kinds = [("products", False, rows)]
                if bench.device.type == "cpu":
                    kinds.append(("step_products", True, list(self.plan.step_rows)))
                for kind, step, all_rows in kinds:
                    for count in all_rows:
                        entry = {"precision": precision, "rows": count, "in": in_, "out": out}
                        points.append(
                            _Point(kind, entry, bench.product(precision, count, in_, out, step=step))
                        )
        return points

    def _attentions(self, bench: Bench) -> list[_Point]:
        sizes = [(batch, 1, kv_len) for batch, kv_len in self.plan.decode]
        sizes += [(1, prompt, prompt) for prompt in self.plan.prompts]
        formats = [(precision, precision) for precision in self.plan.precisions]
        formats.append((self.plan.precisions[0], "int8"))
        points = []
        for precision, kv in formats:
            for batch, new, kv_len in sizes:
                timed = bench.attention(
                    precision, kv, batch=batch, heads=_HEADS, head_dim=_HEAD_DIM, new=new, kv_len=kv_len
                )
                entry = {"kv": kv, "batch": batch, "n_head": _HEADS, "n_kv_head": _HEADS}
                entry |= {"head_dim": _HEAD_DIM, "query_tokens": new, "kv_len": kv_len}
                points.append(_Point("attentions", entry, timed))
        return points

    def _file(
        self, points: list[_Point], best_looks: list[float], elementwise: "_Elementwise", overhead: Timed
    ) -> dict[str, Any]:
        lists: dict[str, list[dict[str, Any]]] = {"products": [], "step_products": [], "attentions": []}
        for point in points:
            if point.timed.samples:
                lists[point.kind].append(point.entry | {"seconds": point.timed.seconds})
        if not lists["step_products"]:
            del lists["step_products"]
        return {
            "schema_version": 1,
            "machine": _machine(self.device),
            "kind": "cpu" if self.device == "cpu" else "gpu",
            "num_threads": torch.get_num_threads(),
            "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "read_bytes_per_s": max(best_looks),
            "usual_read_bytes_per_s": median(best_looks),
            "elementwise_bytes_per_s": elementwise.nbytes / elementwise.timed.seconds,
            "pass_overhead_s": overhead.seconds,
            **lists,
        }


class _Elementwise:
    """A norm and a residual sum of a layer's rows, which stay in the caches."""

    def __init__(self, bench: Bench) -> None:
        x = torch.zeros(_ELEMENTWISE_ROWS, _WIDTHS[0], device=bench.device)

        def run(times: int) -> None:
            for _ in range(times):
                x.add_(torch.nn.functional.layer_norm(x, x.shape[-1:]))

        self.nbytes = 5 * x.nbytes  # the norm reads and writes, the sum reads two and writes
        self.timed = Timed(bench, lambda: run(100), 100, lambda: run(1))


def _overhead(bench: Bench) -> Timed:
    """A decode step of a model so narrow that its products, attention and norms take next to no time."""
    config = ModelConfig(n_layer=12, n_head=1, n_embd=64, block_size=64, vocab_size=64)
    model = Gpt2(config, "v1", device=bench.device)
    cache = model.make_cache(1)
    assert cache is not None  # v1 keeps one
    token = torch.zeros(1, 1, dtype=torch.int64)

    def run(steps: int) -> None:
        cache.reset()
        for _ in range(steps):
            model.forward(token, cache, every_token=False)

    return Timed(bench, lambda: run(32), 32, lambda: run(1))


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return _C.measure.machine_context(torch.device("cpu"))["cpu"]
