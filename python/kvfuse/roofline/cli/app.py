"""The commands, put together."""

import typer

from kvfuse.roofline.cli import measured, predictions, recommendation, registry, serve

app = typer.Typer(
    help="What transformer inference should take on a machine, in which formats to run it, and measuring it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

for module in (predictions, recommendation, registry, measured, serve):
    for command in module.COMMANDS:
        app.command(command.__name__)(command)
