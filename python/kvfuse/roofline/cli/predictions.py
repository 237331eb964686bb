"""predict, sweep and kv."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from kvfuse.roofline import predict as library
from kvfuse.roofline.cli import inputs, output
from kvfuse.roofline.inputs import Hardware, Model
from kvfuse.roofline.results import GemmPrediction, PassPrediction

PHASES = ("decode", "prefill")
GEMM_FORM = "MxNxK"


def pass_of(
    hardware: Hardware, shape: Model, phase: str, context: int, batch: int, strategy: str
) -> PassPrediction:
    """A decode step after ``context`` tokens, or a prompt of as many."""
    if phase == "decode":
        return library.predict_pass(hardware, shape, batch=batch, past=context, strategy=strategy)
    return library.predict_pass(hardware, shape, batch=batch, tokens=context, strategy=strategy)


def predict(
    hardware: inputs.HardwareName = "gb10",
    model: inputs.ModelName = "llama-3-8b",
    sizes: inputs.Sizes = None,
    phase: inputs.PhaseName = "decode",
    context: inputs.Context = 4096,
    batch: inputs.Batch = 1,
    strategy: inputs.StrategyName = "fp16_baseline",
    gemm: Annotated[
        str | None,
        typer.Option(help="One matrix product instead, M rows of K times N x K.", metavar=GEMM_FORM),
    ] = None,
    precision: Annotated[str, typer.Option(help="With --gemm: the format of the weights.")] = "fp16",
    profile: inputs.Profile = "vendor",
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
    json: inputs.Json = False,
) -> None:
    """Predict one forward pass, operator by operator, or one matrix product.

    \b
    Examples:
      kvfuse roofline predict --hardware h100 --model llama-3-8b --context 8192
      kvfuse roofline predict --hardware b10 --phase prefill --context 2048 --strategy fp8_balanced
      kvfuse roofline predict --hardware b10 --profile reference --gemm 1x4096x4096 --precision nvfp4
      kvfuse roofline predict --hardware here --model gpt2 --strategy fp32     (after calibrate)
    """
    chosen = inputs.machine(hardware, profile, hardware_file, calibration)
    if gemm is not None:
        product = library.predict_gemm(chosen, *gemm_sizes(gemm), precision)
        return output.print_json(product) if json else _print_gemm(product, hardware)
    inputs.one_of("--phase", phase, PHASES)
    shape = inputs.model(model, sizes)
    prediction = pass_of(chosen, shape, phase, context, batch, strategy)
    if json:
        return output.print_json(prediction)
    _print_pass(prediction, f"{shape.name} on {chosen.info.title}, {strategy}: {phase} at {context} tokens")
    return None


def gemm_sizes(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3:
        raise ValueError(f"--gemm: expected {GEMM_FORM}, such as 1x4096x4096, got {text!r}")
    M, N, K = (inputs.whole("--gemm", part) for part in parts)
    return M, N, K


def _print_gemm(product: GemmPrediction, hardware: str) -> None:
    note = (
        f" (kept in {product.precision}, computed in {product.computed_in})" if product.storage_only else ""
    )
    output.print_table(
        f"[{product.M}, {product.K}] x [{product.N}, {product.K}]^T, {product.precision} on {hardware}{note}",
        ["", "value"],
        [
            ["time us", output.number(product.predicted_time_us)],
            ["bound by", product.bottleneck],
            ["memory us", output.number(product.memory_time_us)],
            ["compute us", output.number(product.compute_time_us)],
            ["FLOP", output.number(product.flops)],
            ["bytes", output.number(product.bytes)],
            ["FLOP/byte", output.number(product.ai)],
            ["ridge FLOP/byte", output.number(product.critical_ai)],
        ],
    )


def _print_pass(prediction: PassPrediction, title: str) -> None:
    rows = [
        [
            one.op,
            one.precision + (f" as {one.computed_in}" if one.storage_only else ""),
            output.number(one.time_ms),
            output.percent(one.time_ms / prediction.time_ms),
            output.number(one.flops / 1e9),
            output.number(one.bytes / 1e6),
            output.number(one.ai),
            one.bound,
        ]
        for one in prediction.operators
        if one.flops or one.bytes
    ]
    total = [
        "all",
        "",
        output.number(prediction.time_ms),
        "100.0%",
        output.number(prediction.flops / 1e9),
        output.number(prediction.bytes / 1e6),
        output.number(prediction.ai),
        prediction.bound,
    ]
    headers = ["operator", "format", "ms", "share", "GFLOP", "MB", "FLOP/byte", "bound by"]
    output.print_table(title, headers, [*rows, total])
    output.print_lines(
        [
            f"shortest with perfect overlap: {output.number(prediction.shortest_ms)} ms; "
            f"{output.number(1e3 * prediction.batch * prediction.scored / prediction.time_ms)} tokens/s"
        ]
    )


def sweep(
    hardware: inputs.HardwareNames = "gb10",
    model: Annotated[str, typer.Option("--model", "-m", help="Presets, separated by commas.")] = "llama-3-8b",
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="Strategies, separated by commas.")
    ] = "fp16_baseline",
    context: inputs.Contexts = "1024,4096,16384",
    batch: Annotated[str, typer.Option("--batch", "-b", help="Numbers of sequences.")] = "1",
    phase: inputs.PhaseName = "decode",
    gemm: Annotated[
        str | None,
        typer.Option(help="Matrix products instead, separated by commas.", metavar=GEMM_FORM),
    ] = None,
    precision: Annotated[str, typer.Option(help="With --gemm: formats of the weights.")] = "fp16,fp8",
    profile: inputs.Profile = "vendor",
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
    json: inputs.Json = False,
) -> None:
    """Predict every combination of machines, models, strategies, batches and contexts.

    \b
    Examples:
      kvfuse roofline sweep --hardware a100-80,h100 --strategy fp16_baseline,fp8_balanced
      kvfuse roofline sweep --hardware h100 --context 1024,8192,65536 --batch 1,8,64 --json
      kvfuse roofline sweep --hardware gb10,h100 --gemm 1x4096x4096,512x4096x4096 --precision fp16,fp8
    """
    machines = [
        inputs.machine(one, profile, hardware_file, calibration)
        for one in inputs.names("--hardware", hardware)
    ]
    if gemm is not None:
        shapes = [gemm_sizes(one) for one in inputs.names("--gemm", gemm)]
        products = library.sweep_gemm(machines, shapes, inputs.names("--precision", precision))
        _show(products, _GEMM_COLUMNS, json)
        return
    points = library.sweep_models(
        machines,
        [inputs.model(one, None) for one in inputs.names("--model", model)],
        strategies=inputs.names("--strategy", strategy),
        batches=inputs.whole_numbers("--batch", batch),
        contexts=inputs.whole_numbers("--context", context),
        prefill=inputs.one_of("--phase", phase, PHASES) == "prefill",
    )
    _show(points, _MODEL_COLUMNS, json)


_GEMM_COLUMNS = (
    "hardware",
    "precision",
    "M",
    "N",
    "K",
    "predicted_time_us",
    "ai",
    "critical_ai",
    "bottleneck",
)
_MODEL_COLUMNS = (
    "hardware",
    "model",
    "strategy",
    "batch",
    "context",
    "time_ms",
    "tokens_per_s",
    "ai",
    "bound",
    "fits_memory",
)


def _show(points: Any, columns: tuple[str, ...], json: bool) -> None:
    if json:
        return output.print_json(points)
    rows = ([_cell(asdict(point)[column]) for column in columns] for point in points)
    return output.print_table("", columns, rows)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return output.number(value) if isinstance(value, float) else str(value)


def kv(
    model: inputs.ModelName = "llama-3-8b",
    sizes: inputs.Sizes = None,
    context: inputs.Contexts = "1024,4096,16384,32768",
    batch: inputs.Batch = 1,
    precision: Annotated[
        str, typer.Option(help="Formats of K and V, separated by commas.")
    ] = "fp16,int8,nvfp4",
    recent_window: Annotated[int, typer.Option(help="Tokens that stay in 16 bits.")] = 0,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="That the crossover with the weights is of.")
    ] = "fp16_baseline",
    json: inputs.Json = False,
) -> None:
    """Size of the KV cache by context and format, and where reading it overtakes reading the weights.

    \b
    Examples:
      kvfuse roofline kv --model llama-3-8b --context 4096,32768,131072
      kvfuse roofline kv --model published --context 32768 --precision fp16,nvfp4 --recent-window 256
      kvfuse roofline kv --model gpt2 --precision fp32,int8 --batch 8
    """
    shape = inputs.model(model, sizes)
    contexts = inputs.whole_numbers("--context", context)
    formats = inputs.names("--precision", precision)
    sizes_of = {
        one: [
            library.kv_cache_bytes(
                shape, tokens, batch=batch, precision=one, recent_window=_window(one, recent_window)
            )
            for tokens in contexts
        ]
        for one in formats
    }
    crossover = library.kv_crossover_tokens(shape, batch=batch, strategy=strategy)
    if json:
        curves = [{"precision": one, "bytes": nbytes} for one, nbytes in sizes_of.items()]
        fields = {"model": shape.name, "batch": batch, "contexts": contexts, "curves": curves}
        return output.print_json(fields | {"strategy": strategy, "crossover_tokens": crossover})
    rows = [
        [str(tokens), *(output.mib(nbytes[index]) for nbytes in sizes_of.values())]
        for index, tokens in enumerate(contexts)
    ]
    output.print_table(f"{shape.name}, batch {batch}: MiB of K and V", ["context", *sizes_of], rows)
    output.print_lines(
        [f"from {output.number(crossover)} tokens on, {strategy} reads more K and V than weights a step"]
    )
    return None


def _window(precision: str, recent_window: int) -> int:
    """Formats of 16 bits and more keep everything as it is."""
    return 0 if precision in ("fp32", "fp16", "bf16") else recent_window


COMMANDS = (predict, sweep, kv)
