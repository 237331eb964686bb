"""Times the generate of GPT-2 (124M) in nanoGPT, as it is and patched, and writes a line of JSON a version.

PYTHONPATH=python python scripts/bench_nanogpt.py FOLDER_OF_NANOGPT --log-file results/nanogpt.jsonl
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import kvfuse
import torch
from gpu_check.timing import ratio, summary
from kvfuse.nanogpt import patch, unpatch
from torch import Tensor, nn

UNPATCHED = "unpatched"


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nanogpt", type=Path, help="folder of nanoGPT's model.py")
    parser.add_argument("--version", nargs="+", default=["v1", "v2"], dest="versions")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-length", type=int, default=1, help="tokens; nanoGPT's sample.py has 1")
    parser.add_argument("--tokens", type=int, default=512, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each side, taken in turn")
    parser.add_argument("--log-file", type=Path, help="where the lines are appended, else they are printed")
    return parser.parse_args(words)


def make_model(folder: Path) -> nn.Module:
    """With random weights: they cost the same time as trained ones."""
    sys.path.insert(0, str(folder))
    model_py = importlib.import_module("model")
    torch.manual_seed(0)
    return model_py.GPT(model_py.GPTConfig(vocab_size=50257)).eval()


def timed(model: nn.Module, version: str, prompt: Tensor, tokens: int) -> tuple[float, Tensor]:
    """Seconds of a whole call, and the tokens."""
    if version != UNPATCHED:
        patch(model, version)
    start = time.perf_counter()
    generated = model.generate(prompt, tokens, top_k=1)
    elapsed = time.perf_counter() - start
    if version != UNPATCHED:
        unpatch(model)
    return elapsed, generated


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    model = make_model(options.nanogpt)
    prompt = torch.randint(50257, (options.batch, options.prompt_length))
    seconds: dict[str, list[float]] = {side: [] for side in (UNPATCHED, *options.versions)}
    generated: dict[str, Tensor] = {}
    for side in seconds:
        timed(model, side, prompt, 8)  # the first calls of a process are slower
    for number in range(options.rounds):
        for side, samples in seconds.items():
            elapsed, generated[side] = timed(model, side, prompt, options.tokens)
            samples.append(elapsed)
            print(f"round {number + 1}: {side} {elapsed:.2f} s", file=sys.stderr)
    equal = {side: torch.equal(tokens, generated[UNPATCHED]) for side, tokens in generated.items()}
    return [record(options, side, seconds, equal[side]) for side in seconds]


def record(
    options: argparse.Namespace, side: str, seconds: dict[str, list[float]], same_tokens: bool
) -> dict[str, Any]:
    return {
        "benchmark_name": "nanogpt_generate",
        "version": side,
        "model": "gpt2",
        "dtype": "float32",
        "batch_size": options.batch,
        "prompt_length": options.prompt_length,
        "T": options.tokens,
        "time_total_s_samples": seconds[side],
        "time_total_s": summary(seconds[side]),
        "speedup": ratio(seconds[UNPATCHED], seconds[side]),
        "same_tokens": same_tokens,
        "context": {
            "device": "cpu",
            "isa": kvfuse.build_info()["active_isa"],
            "num_threads": torch.get_num_threads(),
            "kvfuse_version": kvfuse.__version__,
            "torch": torch.__version__,
        },
    }


def main(words: list[str] | None = None) -> int:
    options = parse_arguments(words)
    lines = "".join(json.dumps(each) + "\n" for each in measure(options))
    if options.log_file is None:
        print(lines, end="")
    else:
        with options.log_file.open("a") as log:
            log.write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
