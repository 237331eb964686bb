"""serve."""

from typing import Annotated

import typer

from kvfuse.roofline.cli import inputs


def serve(
    host: Annotated[
        str, typer.Option(help="The address to listen on; any but this machine's own lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name of this machine; repeatable.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="An origin whose pages may use the API; repeatable."),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Let requests measure on this machine.")] = True,
    hardware_file: inputs.HardwareFile = None,
    calibration: inputs.CalibrationFile = None,
) -> int:
    """Serve the page and the HTTP API (documented at /docs) until Ctrl-C.

    \b
    Examples:
      kvfuse roofline serve
      kvfuse roofline serve --port 8080 --hardware-file machines.json
      kvfuse roofline serve --host 0.0.0.0 --allow-host lab.example.org --no-measure
    """
    try:
        from kvfuse.roofline import server
    except ModuleNotFoundError as error:
        raise RuntimeError(str(error)) from error
    settings = server.Settings(
        host=host,
        allowed_hosts=tuple(allow_host or ()),
        cors_origins=tuple(cors_origin or ()),
        measure=measure,
        registry=inputs.registry(hardware_file),
        calibration=inputs.calibration(calibration),
    )
    return server.serve(port, settings)


COMMANDS = (serve,)
