"""kvfuse's cache beside those of transformers, in one process: time, memory and perplexity of each.

Speed and memory: a model with random weights generates greedily, all caches in turn, several times.
Perplexity: a small model, trained for a minute on --text, reads text it has not seen: a prompt, then one
token at a time through each cache; mean_kl, in nats, is how far its predictions are from those through a
float32 cache. Each record is one line of JSON in --log-file; the tables go to stdout.
Of transformers' quantised caches quanto has no 8 bits, fp8 needs nothing, and hqq needs `pip install hqq`.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import kvfuse
import torch
import transformers
from hf_cache_tables import BASELINE, print_tables
from kvfuse.hf import FusedCache
from kvfuse.hf.stored_tokens import StoredTokens
from torch import Tensor
from transformers.cache_utils import QuantizedCache

Model = transformers.PreTrainedModel

# Names of the caches, and the attention implementation that each runs with.
CACHES: dict[str, tuple[str, Callable[[Model, int], transformers.Cache]]] = {
    "DynamicCache float32": ("sdpa", lambda model, length: transformers.DynamicCache(config=model.config)),
    "QuantizedCache fp8": ("sdpa", lambda model, length: QuantizedCache("fp8", model.config)),
    # One scale for each row of 64, the grain of kvfuse's.
    "QuantizedCache hqq int8": (
        "sdpa",
        lambda model, length: QuantizedCache("hqq", model.config, nbits=8, axis_key=1, axis_value=1),
    ),
    "FusedCache float32": ("kvfuse", lambda model, length: FusedCache(model.config, "model", length)),
    "FusedCache int8": ("kvfuse", lambda model, length: FusedCache(model.config, "int8", length)),
    "FusedCache int8, residual 96": (
        "kvfuse",
        lambda model, length: FusedCache(model.config, "int8", length, residual_length=96),
    ),
    "FusedCache int8, growing": ("kvfuse", lambda model, length: FusedCache(model.config, "int8")),
}
WINDOW = 256  # tokens that the trained models see
PROMPT = 64  # of these are passed at once: a cache may set its scales by the first tokens


def large_models() -> dict[str, Callable[[], Model]]:
    """Of the size of GPT-2 (124M); both with heads of 64."""
    llama = transformers.LlamaConfig(
        hidden_size=768,
        num_attention_heads=12,
        num_key_value_heads=4,
        num_hidden_layers=12,
        intermediate_size=2048,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    gpt2 = transformers.GPT2Config(n_positions=4096)
    return {
        "gpt2": lambda: transformers.GPT2LMHeadModel(gpt2),
        "llama": lambda: transformers.LlamaForCausalLM(llama),
    }


def small_models() -> dict[str, Callable[[], Model]]:
    """For bytes; their heads are of 64 too."""
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens = {"bos_token_id": None, "eos_token_id": None}
    gpt2 = transformers.GPT2Config(
        n_layer=4, n_head=2, n_embd=128, n_positions=WINDOW, vocab_size=128, **drop, **tokens
    )
    llama = transformers.LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=4,
        intermediate_size=384,
        vocab_size=128,
        max_position_embeddings=WINDOW,
        **tokens,
    )
    return {
        "gpt2": lambda: transformers.GPT2LMHeadModel(gpt2),
        "llama": lambda: transformers.LlamaForCausalLM(llama),
    }


def make_cache(name: str, model: Model, length: int) -> transformers.Cache:
    """An empty cache, and the model set to the attention that it runs with."""
    attention, make = CACHES[name]
    model.set_attn_implementation(attention)
    return make(model, length)


def held_bytes(cache: transformers.Cache) -> int:
    """Bytes of the memory behind every tensor that a cache holds, whatever its kind."""
    storages = {}
    for tensor in tensors_in([layer.__dict__ for layer in cache.layers]):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, kvfuse.LayerCache | StoredTokens):
        yield from tensors_in(value.__dict__)


class Clock(transformers.LogitsProcessor):
    """Notes when each token's logits are there; changes nothing."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        return scores


def generate_once(name: str, model: Model, prompt: Tensor, new_tokens: int) -> dict[str, float]:
    cache = make_cache(name, model, prompt.shape[1] + new_tokens)
    clock = Clock()
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        past_key_values=cache,
        logits_processor=transformers.LogitsProcessorList([clock]),
    )
    end = time.perf_counter()
    assert tokens.shape[1] == prompt.shape[1] + new_tokens
    return {
        "generate_ms": (end - clock.times[0]) * 1e3,
        "prefill_ms": (clock.times[1] - clock.times[0]) * 1e3,
        "decode_ms_per_token": (clock.times[-1] - clock.times[1]) * 1e3 / (new_tokens - 1),
        "cache_bytes": held_bytes(cache),
    }


def measure_speed(model_name: str, names: list[str], arguments: argparse.Namespace) -> Iterator[dict]:
    """One record a cache. The caches take turns, so that what disturbs the machine disturbs all."""
    torch.manual_seed(0)
    model = large_models()[model_name]().eval()
    prompt = torch.randint(1, 32000, (arguments.batch, arguments.length - arguments.new_tokens))
    samples: dict[str, list[dict]] = {name: [] for name in names}
    for round_number in range(-1, arguments.rounds):
        for name in names:
            print(f"{model_name}, round {round_number + 1}: {name}", file=sys.stderr)
            sample = generate_once(name, model, prompt, arguments.new_tokens)
            if round_number >= 0:  # the first warms up
                samples[name].append(sample)
    for name in names:
        times = {key: [sample[key] for sample in samples[name]] for key in samples[name][0]}
        record = {f"{key}_samples": values for key, values in times.items() if key != "cache_bytes"}
        yield {
            "benchmark_name": "hf_generate",
            "cache": name,
            "model": model_name,
            "batch_size": arguments.batch,
            "prompt_length": prompt.shape[1],
            "T": arguments.new_tokens,
            "cache_bytes": times["cache_bytes"][-1],
            **record,
        }


def train(model: Model, ids: Tensor, steps: int) -> Model:
    optimizer = torch.optim.AdamW(model.parameters())
    windows = ids.unfold(0, WINDOW, 1)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        batch = windows[torch.randint(len(windows), (16,))]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def predictions(name: str, model: Model, windows: Tensor) -> Tensor:
    """Log-probabilities, float64 [windows, tokens, vocab_size], of what follows each window's prompt,
    predicted through the cache."""
    cache = make_cache(name, model, WINDOW)
    found = []
    for end in range(PROMPT, WINDOW):
        new = windows[:, cache.get_seq_length() : end]
        found.append(model(new, past_key_values=cache).logits[:, -1].double().log_softmax(-1))
    return torch.stack(found, dim=1)


def measure_perplexity(model_name: str, names: list[str], arguments: argparse.Namespace) -> Iterator[dict]:
    text = arguments.text.read_bytes().decode(errors="replace").encode("ascii", errors="replace")
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(ids) * 9 // 10
    torch.manual_seed(0)
    print(f"{model_name}: training", file=sys.stderr)
    model = train(small_models()[model_name](), ids[:cut], arguments.steps)
    windows = ids[cut:].unfold(0, WINDOW, WINDOW)[: arguments.windows]
    baseline = predictions(BASELINE, model, windows)
    for name in names:
        found = predictions(name, model, windows)
        value = float(found.gather(-1, windows[:, PROMPT:, None]).mean().neg().exp())
        kl = float((baseline.exp() * (baseline - found)).sum(-1).mean())
        yield {
            "status": "ok" if math.isfinite(value) else "nonfinite",
            "benchmark_name": "hf_perplexity",
            "cache": name,
            "model": f"{model_name}, {arguments.steps} steps on {arguments.text.name}",
            "num_tokens": windows.shape[0] * (WINDOW - PROMPT),
            "perplexity": value if math.isfinite(value) else None,
            "mean_kl": kl if math.isfinite(kl) else None,
        }


def available(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each cache, and why it cannot be had; empty if it can."""
    model = small_models()["gpt2"]()
    for name in names:
        try:
            make_cache(name, model, WINDOW)
            yield name, ""
        except ImportError as error:
            yield name, str(error)


def context() -> dict[str, object]:
    return {
        "device": "cpu",
        "isa": kvfuse.build_info()["active_isa"],
        "num_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "kvfuse_version": kvfuse.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--log-file", type=Path, default=Path("results/hf_caches.jsonl"), metavar="FILE")
    parser.add_argument("--text", type=Path, metavar="FILE", help="plain text; without it no perplexity")
    parser.add_argument("--models", nargs="+", choices=large_models(), default=list(large_models()))
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="prompt and generated tokens")
    parser.add_argument("--new-tokens", type=int, default=64, help="of these are generated, at least 2")
    parser.add_argument("--rounds", type=int, default=5, help="0: only perplexity")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--windows", type=int, default=48, help="of 256 tokens whose perplexity is taken")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the tables of these records")
    arguments = parser.parse_args(argv)
    if not 2 <= arguments.new_tokens < arguments.length <= 4096:
        parser.error("expected 2 <= --new-tokens < --length <= 4096")
    if arguments.text is not None and not arguments.text.is_file():
        parser.error(f"expected a file of text as --text, got {arguments.text}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.table is not None:
        print_tables([json.loads(line) for line in arguments.table.read_text().splitlines()])
        return 0
    arguments.log_file.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict] = []

    def write(record: dict) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        records.append({"schema_version": 1, "time": stamp, "status": "ok", **record, "context": context()})
        with arguments.log_file.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")

    names = []
    for name, reason in available(arguments.caches):
        if reason:
            skipped = {"benchmark_name": "hf_generate", "status": "skipped", "cache": name}
            write({**skipped, "reason": reason})
        else:
            names.append(name)
    for model_name in arguments.models:
        if arguments.rounds > 0:
            for record in measure_speed(model_name, names, arguments):
                write(record)
        if arguments.text is not None:
            for record in measure_perplexity(model_name, names, arguments):
                write(record)
    print_tables(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
