"""``python -m kvfuse.sample --weights gpt2/ --version v2 --prompt "Once"``: text, as it is generated."""

import argparse
import codecs
import sys
from collections.abc import Callable
from typing import TextIO

import torch
from torch import Tensor

from kvfuse import _command
from kvfuse.model import Gpt2
from kvfuse.prepare_data import load_encoding
from kvfuse.versions import VERSIONS


def printer(decode: Callable[[int], bytes], out: TextIO) -> Callable[[Tensor], None]:
    """What prints each new token of a sequence; characters of several tokens appear once they are whole."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def on_token(newest: Tensor) -> None:
        out.write(characters.decode(decode(int(newest[0]))))
        out.flush()

    return on_token


def sample(arguments: argparse.Namespace) -> int:
    options = _command.model_options(arguments)
    if arguments.max_new_tokens < 1:
        raise _command.UsageError(f"--max-new-tokens: expected a number >= 1, got {arguments.max_new_tokens}")
    encoding, _ = load_encoding(arguments.vocab)
    prompt = encoding.encode_ordinary(arguments.prompt)
    if not prompt:
        raise _command.UsageError("--prompt: expected at least one character, got none")
    model = Gpt2(
        options.config,
        arguments.version,
        weights=arguments.weights,
        dtype=arguments.dtype,
        device=options.device,
        transforms=arguments.transforms,
        seed=arguments.seed,
    )
    for warning in model.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.weights is None:
        print("warning: the weights are random (--weights names a file)", file=sys.stderr)

    def decode(token: int) -> bytes:
        # A vocabulary padded to a round size has ids that stand for no text.
        return encoding.decode_single_token_bytes(token) if token < encoding.n_vocab else "\ufffd".encode()

    print(arguments.prompt, end="", flush=True)
    try:
        model.generate(
            torch.tensor([prompt]),
            arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            overflow=arguments.overflow,
            on_token=printer(decode, sys.stdout),
        )
    finally:
        print()
    return 0


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kvfuse.sample", description=__doc__)
    _command.add_model_options(parser)
    parser.add_argument(
        "--version", choices=list(VERSIONS), default="v2", metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument("--prompt", default="\n", help="what the text begins with (default: a line end)")
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest token (default: %(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=200, metavar="K", help="0: all (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: %(default)s")
    parser.add_argument(
        "--overflow",
        choices=("error", "slide", "sink"),
        default="slide",
        help="beyond the model's block_size (default: %(default)s)",
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return _command.run("kvfuse.sample", lambda: sample(arguments))


if __name__ == "__main__":
    sys.exit(main())
