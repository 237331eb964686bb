"""hardware."""

from typing import Annotated

import typer

from kvfuse.roofline.cli import inputs, output
from kvfuse.roofline.results import Figure, HardwareInfo


def hardware(
    name: Annotated[str | None, typer.Argument(help="One machine with the sources of its figures.")] = None,
    profile: inputs.Profile = "vendor",
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
    json: inputs.Json = False,
) -> None:
    """List the machines that are known, or one of them with the source of each figure.

    \b
    Examples:
      kvfuse roofline hardware
      kvfuse roofline hardware h100
      kvfuse roofline hardware --hardware-file machines.json mine
      kvfuse roofline hardware here            (as calibrate measured it)
    """
    if name is not None:
        info = inputs.machine(name, profile, hardware_file, calibration).info
        return output.print_json(info) if json else _print_one(info)
    known = inputs.registry(hardware_file)
    infos = [known.find(one, profile).info for one in known.names()]
    if json:
        return output.print_json(infos)
    rows = (
        [
            info.name,
            info.title,
            output.number(info.bandwidth_gb_s.value),
            _value(info.memory_gb),
            *(_value(info.peak_tflop_s.get(one)) for one in ("fp16", "fp8", "int4", "nvfp4")),
            ", ".join(info.aliases),
        ]
        for info in infos
    )
    headers = ["name", "title", "GB/s", "GB", "fp16 TFLOP/s", "fp8", "int4", "nvfp4", "aliases"]
    return output.print_table("", headers, rows)


def _value(figure: Figure | None) -> str:
    return "-" if figure is None else output.number(figure.value)


def _print_one(info: HardwareInfo) -> None:
    figures = {"bandwidth GB/s": info.bandwidth_gb_s, "memory GB": info.memory_gb, "L2 MB": info.l2_mb}
    figures |= {"multiprocessors": info.multiprocessors}
    figures |= {f"peak {name} TFLOP/s": peak for name, peak in info.peak_tflop_s.items()}
    rows = [[label, _value(one), one.source] for label, one in figures.items() if one is not None]
    output.print_table(f"{info.name}: {info.title} ({info.profile})", ["figure", "value", "source"], rows)
    if info.note:
        output.print_lines([info.note])


COMMANDS = (hardware,)
