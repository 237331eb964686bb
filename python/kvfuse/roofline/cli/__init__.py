"""``kvfuse roofline``: the toolkit on the command line."""

import sys

from kvfuse._exit_codes import DATA, INTERRUPTED, RESOURCES, USAGE, fail

NAME = "kvfuse roofline"


class FileError(Exception):
    """A file that cannot be read or says what it should not, in one sentence."""


def run(arguments: list[str]) -> int:
    """Runs a command; its exit code: 0, 2 usage, 3 a file, 4 resources, 130 interrupted."""
    try:
        import typer

        from kvfuse.roofline.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        return fail(
            NAME,
            f"expected the package {error.name}, which is not installed (pip install 'kvfuse[roofline]')",
            USAGE,
        )
    try:
        code = app(arguments, prog_name=NAME, standalone_mode=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.TyperException as error:
        return fail(NAME, _one_line(error.format_message()), USAGE)
    except FileError as error:
        return fail(NAME, str(error), DATA)
    except (ValueError, RuntimeError) as error:
        return fail(NAME, _one_line(str(error)), USAGE)
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    except MemoryError:
        return fail(NAME, "the machine has no memory left", RESOURCES)
    except OSError as error:
        return fail(NAME, f"{error.filename}: {error.strerror}" if error.filename else str(error), RESOURCES)
    return code if isinstance(code, int) else 0


def _one_line(message: str) -> str:
    return " ".join(message.removeprefix("roofline: ").split())
