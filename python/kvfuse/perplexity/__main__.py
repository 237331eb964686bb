"""The command: see the package."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kvfuse import _C, _command, perplexity
from kvfuse._exit_codes import INTERRUPTED
from kvfuse.model import Gpt2
from kvfuse.perplexity.dataset import Dataset, read_dataset, wikitext_tokens
from kvfuse.perplexity.evaluation import BASELINE, Calibration, Evaluation, Record
from kvfuse.perplexity.table import table
from kvfuse.prepare_data import DataError, write_whole
from kvfuse.versions import VERSIONS, get_version_config

NAME = "kvfuse.perplexity"
OK, POINTS_FAILED = 0, 1


def import_tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        raise DataError(
            "expected the package tqdm, which is not installed (pip install 'kvfuse[text]')"
        ) from None
    return tqdm


def load_calibration(arguments: argparse.Namespace, vocab_size: int) -> Calibration | None:
    """The tokens that the versions need to fit their layers; None if none of them does."""
    if not any(get_version_config(name)["q_alignment_method"] == "fit" for name in arguments.version):
        return None
    count = arguments.calibration_tokens
    if arguments.calibration is None:
        warn("the layers of versions that fit them are fitted on random tokens, which say little about text")
        return Calibration(_C.random_token_ids([count], vocab_size, arguments.seed))
    dataset = read_dataset(arguments.calibration, vocab_size, arguments.vocab)
    if dataset.tokens.size < count:
        raise DataError(
            f"{arguments.calibration}: expected at least --calibration-tokens ({count}) tokens, got "
            f"{dataset.tokens.size}"
        )
    return Calibration(torch.from_numpy(dataset.tokens[:count].astype("int64")), dataset.path, dataset.sha256)


def load(arguments: argparse.Namespace) -> Evaluation:
    options = _command.model_options(arguments)
    path = arguments.dataset or wikitext_tokens(arguments.vocab, arguments.cache)
    dataset: Dataset = read_dataset(path, options.config.vocab_size, arguments.vocab)
    model = Gpt2(
        options.config,
        weights=arguments.weights,
        dtype=arguments.dtype,
        device=options.device,
        transforms=arguments.transforms,
        seed=arguments.seed,
        strict=arguments.strict_weights,
    )
    for warning in model.warnings:
        warn(warning)
    return Evaluation(
        model,
        dataset,
        model_name=options.name,
        weights=arguments.weights,
        autoregressive=arguments.mode == "autoregressive",
        max_tokens=arguments.max_tokens,
        document_separator=arguments.document_separator,
        overflow=arguments.overflow,
        overflow_keep=arguments.overflow_keep,
        sink_tokens=arguments.sink_tokens,
        batch_size=arguments.batch_size,
        divergence=arguments.divergence,
        calibration=load_calibration(arguments, options.config.vocab_size),
    )


def measure(evaluation: Evaluation, log: Any, version: str, show: Callable[..., Any]) -> Record:
    """Measures a version and puts its record on disk."""
    baseline = log.recorded_perplexity(evaluation.case(BASELINE))
    with show(total=evaluation.num_tokens, desc=f"perplexity {version}", unit=" tokens") as bar:

        def on_scored(tokens: int) -> None:
            bar.update(tokens - bar.n)

        record = evaluation.measure(version, baseline, on_scored)
    log.append(record)
    return record


def evaluate(arguments: argparse.Namespace) -> int:
    tqdm = import_tqdm()
    evaluation = load(arguments)
    log = _C.RecordLog(arguments.log_file, clear=arguments.clear_log)
    for notice in log.notices:
        warn(notice)
    records: list[Record] = []
    code = OK
    for version in arguments.version:
        if arguments.resume and log.done(evaluation.case(version)):
            continue
        record = measure(evaluation, log, version, lambda **words: tqdm(**words, disable=None, leave=False))
        if record["status"] == "ok":
            records.append(record)
            print(
                f"{version}: perplexity {record['perplexity']:.4f}, loss {record['loss']:.6f} over "
                f"{record['num_tokens']} tokens ({record['mode']}, {record['elapsed_s']:.1f} s)"
            )
            continue
        print(f"{version}: {record['status']} ({record['reason']})", file=sys.stderr)
        if record["status"] == "interrupted":
            return INTERRUPTED
        code = POINTS_FAILED
    if arguments.table:
        write_whole(arguments.table, table(records).encode())
    return code


def warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        metavar="FILE",
        help="a token file (.bin) or a text (default: WikiText-2, downloaded once)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where WikiText-2 is kept (default: kvfuse in XDG_CACHE_HOME or ~/.cache)",
    )
    parser.add_argument(
        "--mode",
        choices=("teacher_forcing", "autoregressive"),
        default="teacher_forcing",
        help="a pass over each window without a cache, or token by token through it (default: %(default)s)",
    )
    parser.add_argument("--autoregressive", dest="mode", action="store_const", const="autoregressive")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of the text (default: all)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="windows side by side")
    parser.add_argument(
        "--document-separator", type=int, metavar="ID", help="a token that begins a new document"
    )
    parser.add_argument("--overflow", choices=("error", "slide", "sink"), default="error")
    parser.add_argument("--overflow-keep", type=int, metavar="N", help="default: half of block_size")
    parser.add_argument("--sink-tokens", type=int, default=4, metavar="N")
    parser.add_argument(
        "--divergence", action="store_true", help=f"also how far the predictions are from {BASELINE}'s"
    )


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=perplexity.__doc__)
    parser.add_argument(
        "--version", nargs="+", choices=list(VERSIONS), default=[BASELINE], metavar="NAME", help=BASELINE
    )
    _command.add_model_options(parser)
    parser.add_argument("--strict-weights", action="store_true", help="weights that are NaN are an error")
    add_text_options(parser)
    parser.add_argument(
        "--calibration", metavar="FILE", help="as --dataset, for versions that fit layers (default: random)"
    )
    parser.add_argument("--calibration-tokens", type=int, default=4096, metavar="N")
    parser.add_argument("--log-file", default="results.jsonl", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--clear-log", action="store_true", help="empty the log file first")
    parser.add_argument("--resume", action="store_true", help="measure only what the log file lacks")
    parser.add_argument("--table", type=Path, metavar="FILE", help="also write a table, perplexity_table.md")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    return _command.run(NAME, lambda: evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
