"""One version of kvfuse on the work of the peers' harness: greedy generation at batch 1, and a prefill.

Prints one line of JSON, in the form in which the harness takes a command of ours; bench_peers.py calls it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kvfuse import _command
from kvfuse.model import Gpt2, ModelConfig, preset_names
from kvfuse.roofline import Model
from kvfuse.versions import VERSIONS
from torch import Tensor

WARM_UP_TOKENS = 16


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def forget_peak_memory() -> None:
    """The kernel's mark starts anew, where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


def cost(model: Gpt2) -> dict[str, float]:
    """Bytes that a decode step reads of a weight and of an entry of the KV cache, scales included."""
    sizes = asdict(model.config)
    sizes.pop("dropout")
    shape = Model(
        **sizes,
        n_kv_head=model.config.n_head,
        head_dim=model.config.n_embd // model.config.n_head,
        d_ff=4 * model.config.n_embd,
        architecture="gpt2",
    )
    counts = shape.native().count_weights()
    read = counts["total"] - counts["position"]  # of the table of positions a step reads one row
    cache = model.make_cache(1)
    entries = 2 * model.config.n_layer * model.config.n_embd * model.config.block_size
    return {
        "weight_b": round((model.nbytes - counts["position"] * model.dtype.itemsize) / read, 4),
        "kv_b": 0.0 if cache is None else round(cache.nbytes / entries, 4),
    }


def generation(model: Gpt2, prompt: Tensor, total: int, reps: int) -> dict[str, Any]:
    """The samples of one length. As for the peers, their shortest generation warms up."""
    model.generate(prompt, min(WARM_UP_TOKENS, total - prompt.shape[1]))
    forget_peak_memory()
    runs = [timed(lambda: model.generate(prompt, total - prompt.shape[1])) for _ in range(reps)]
    return {
        "total": total,
        "total_s": [seconds for seconds, _ in runs],
        "tokens": runs[0][1][0, prompt.shape[1] :].tolist(),
        "rss_mb": peak_memory_mb(),
    }


def prefill(model: Gpt2, prompt: Tensor, length: int, reps: int) -> list[float]:
    """Seconds of a pass over the prompt, repeated to the length; a cache is made once, as for llama.cpp."""
    tokens = prompt.repeat(1, -(-length // prompt.shape[1]))[:, :length]
    cache = model.make_cache(1, length)

    def run() -> float:
        if cache is not None:
            cache.reset()
        return timed(lambda: model.forward(tokens, cache, every_token=False))[0]

    run()
    return [run() for _ in range(reps)]


def measure(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    config = ModelConfig.beside(arguments.weights) or ModelConfig.preset(arguments.model)
    load_s, model = timed(lambda: Gpt2(config, arguments.version, weights=arguments.weights))
    prompt = torch.tensor([arguments.prompt])
    read = cost(model)
    rows = [generation(model, prompt, total, arguments.reps) | read for total in arguments.totals]
    seconds = prefill(model, prompt, arguments.prefill, arguments.reps)
    print(json.dumps({"load_s": round(load_s, 2), "prefill_s": seconds, "rows": rows}))
    return 0


def integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", choices=list(VERSIONS), required=True)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="safetensors")
    parser.add_argument("--model", choices=preset_names(), default="gpt2", help="if no config.json says it")
    parser.add_argument("--prompt", type=integers, required=True, metavar="IDS", help="such as 1,2,3")
    parser.add_argument("--totals", type=integers, required=True, metavar="N,N", help="prompt and new tokens")
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--reps", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    arguments = parser.parse_args(words)
    if min(arguments.totals) <= len(arguments.prompt):
        parser.error(f"--totals: expected more than the {len(arguments.prompt)} tokens of --prompt")
    if min(arguments.prefill, arguments.reps, arguments.threads) < 1:
        parser.error("expected at least 1 as --prefill, --reps and --threads")
    return arguments


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return _command.run("peer_command", lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
