"""``python -m otel_chatdebug.cli``, where the script is not on the path."""

from otel_chatdebug.cli import main

main(prog_name="otel-chatdebug")
