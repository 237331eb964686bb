"""recommend and compare."""

from typing import Annotated, Any

import typer

from kvfuse.roofline import predict as library
from kvfuse.roofline.cli import inputs, output
from kvfuse.roofline.cli.predictions import PHASES, pass_of
from kvfuse.roofline.inputs import Hardware, Model
from kvfuse.roofline.results import Recommendation


def recommend(
    hardware: inputs.HardwareName = "gb10",
    model: inputs.ModelName = "llama-3-8b",
    sizes: inputs.Sizes = None,
    phase: Annotated[str, typer.Option(help='"decode", "prefill" or "auto".')] = "decode",
    context: inputs.Context = 4096,
    batch: inputs.Batch = 1,
    max_loss: Annotated[
        float | None, typer.Option(help="Percent of quality that may be lost (default 1).", metavar="PERCENT")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Say whether this is reached.", metavar="FACTOR")
    ] = None,
    allow_storage_only: Annotated[
        bool, typer.Option("--allow-storage-only", help="Also formats that the machine does not compute in.")
    ] = False,
    profile: inputs.Profile = "vendor",
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
    json: inputs.Json = False,
) -> None:
    """Recommend formats and an attention kernel, with the reasons.

    \b
    Examples:
      kvfuse roofline recommend --hardware b10 --model llama-3-8b
      kvfuse roofline recommend --hardware b10 --sizes H=4096,L=32,nh=32,nkv=8,dh=128,dff=14336
      kvfuse roofline recommend --hardware h100 --phase prefill --context 8192 --max-loss 0.5
    """
    answer = library.recommend(
        inputs.machine(hardware, profile, hardware_file, calibration),
        inputs.model(model, sizes),
        phase=phase,
        seq_len=context,
        batch=batch,
        max_quality_loss_pct=max_loss,
        min_speedup=min_speedup,
        allow_storage_only=allow_storage_only,
    )
    if json:
        return output.print_json(answer)
    _print_recommendation(answer)
    return None


def _print_recommendation(answer: Recommendation) -> None:
    times = [output.number(one) for one in (answer.predicted_time_ms, answer.baseline_time_ms)]
    output.print_lines(
        [
            f"{answer.strategy_name} with {answer.attention}: {answer.predicted_speedup:.2f} times as fast, "
            f"{times[0]} instead of {times[1]} ms"
        ]
    )
    output.print_lines(f"- {reason}" for reason in answer.reasons)
    rows = [
        [
            one.strategy_name,
            output.number(one.time_ms),
            f"{one.speedup:.2f}x",
            output.percent(one.memory_saving, 0),
            f"{one.quoted_loss_pct:g}%",
            one.refusal or "admitted",
        ]
        for one in answer.candidates
    ]
    output.print_table(
        "", ["strategy", "ms", "speed-up", "memory saved", "quoted loss", "admitted or why not"], rows
    )


def compare(
    setups: Annotated[
        list[str] | None,
        typer.Argument(
            help="Set-ups, MACHINE or MACHINE:STRATEGY; the first is what the others are set beside."
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="Compare attention kernels on this machine instead.", metavar="MACHINE")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Compare the published figures with full accounting instead.")
    ] = False,
    model: inputs.ModelName = "llama-3-8b",
    sizes: inputs.Sizes = None,
    phase: inputs.PhaseName = "decode",
    context: inputs.Context = 4096,
    batch: inputs.Batch = 1,
    profile: inputs.Profile = "vendor",
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
    json: inputs.Json = False,
) -> None:
    """Set machines and strategies side by side, or attention kernels, or the published figures.

    \b
    Examples:
      kvfuse roofline compare a100-80 h100 h200 --model llama-3-8b --context 8192
      kvfuse roofline compare gb10 gb10:fp8_balanced gb10:nvfp4_blackwell
      kvfuse roofline compare --attention h100 --phase prefill --context 4096
      kvfuse roofline compare --published
    """
    if (attention is not None) + published + bool(setups) != 1:
        raise ValueError("compare: expected set-ups, --attention or --published, and one of them only")
    if published:
        return _compare_published(json)
    inputs.one_of("--phase", phase, PHASES)
    shape = inputs.model(model, sizes)
    if attention is not None:
        chosen = inputs.machine(attention, profile, hardware_file, calibration)
        return _compare_attention(chosen, shape, phase, context, batch, json)
    rows = []
    for setup in setups or []:
        name, _, strategy = setup.partition(":")
        chosen = inputs.machine(name, profile, hardware_file, calibration)
        strategy = strategy or "fp16_baseline"
        rows.append((name, strategy, pass_of(chosen, shape, phase, context, batch, strategy)))
    if json:
        fields = [{"hardware": name, "strategy": strategy, "prediction": one} for name, strategy, one in rows]
        return output.print_json(fields)
    first = rows[0][2]
    output.print_table(
        f"{shape.name}: {phase} at {context} tokens, batch {batch}",
        ["hardware", "strategy", "ms", "speed-up", "GFLOP", "MB", "FLOP/byte", "bound by"],
        (
            [
                name,
                strategy,
                output.number(one.time_ms),
                f"{first.time_ms / one.time_ms:.2f}x",
                output.number(one.flops / 1e9),
                output.number(one.bytes / 1e6),
                output.number(one.ai),
                one.bound,
            ]
            for name, strategy, one in rows
        ),
    )
    return None


def _compare_attention(
    hardware: Hardware, shape: Model, phase: str, context: int, batch: int, json: bool
) -> None:
    kernels = library.compare_attention(
        hardware,
        batch=batch,
        n_head=shape.n_head,
        n_kv_head=shape.n_kv_head,
        head_dim=shape.head_dim,
        query_tokens=1 if phase == "decode" else context,
        kv_len=context,
    )
    if json:
        return output.print_json(kernels)
    rows = (
        [
            one.kernel,
            one.precision,
            output.number(one.time_ms),
            f"{one.speedup:.2f}x",
            one.bound,
            output.percent(one.memory_efficiency if one.bound == "memory" else one.compute_efficiency, 0),
            one.source,
        ]
        for one in kernels
    )
    return output.print_table(
        f"attention of one layer of {shape.name}: {phase} at {context} tokens",
        ["kernel", "format", "ms", "speed-up", "bound by", "of that limit", "source"],
        rows,
    )


def _compare_published(json: bool) -> None:
    rows = library.published_results()
    if json:
        return output.print_json(rows)

    def cells(row: Any) -> list[str]:
        figures = [output.number(one) for one in (row.as_published, row.compat, row.complete)]
        return [row.table, row.name, row.unit, *figures, row.note]

    headers = ["table", "figure", "unit", "as published", "by its formula", "full accounting", "note"]
    return output.print_table("", headers, map(cells, rows))


COMMANDS = (recommend, compare)
