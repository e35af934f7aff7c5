"""``otel-chatdebug serve``: the web page on this machine."""

from __future__ import annotations

import contextlib
import socket

import click

from otel_chatdebug.cli.common import database_option, settings

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765

BACKLOG = 128

LEAVE_SECONDS = 3
"""Seconds that open requests have when the server stops. Live views end at once."""


@click.command()
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: any free one.")
@click.option("--token", metavar="TOKEN", help="What opens the page.  [env: OTEL_CHATDEBUG_TOKEN; default: a new one]")
@click.option("--no-token", is_flag=True, help="Open it to everybody on this machine.")
@click.option("--allow-host", "allow_hosts", metavar="NAME", multiple=True, help="A further name of this server.")
@click.option("--root-path", metavar="PATH", default="", help="Where a proxy has put it, /debug for instance.")
@click.option("--open", "open_browser", is_flag=True, help="Open it in a browser.")
@database_option
def serve(
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    allow_hosts: tuple[str, ...],
    root_path: str,
    open_browser: bool,
) -> None:
    """Serve the web page: chats, runs, what hangs.

    It prints a link with a token; who opens the link has a cookie from then on. Other machines reach it only
    where you name a host and a token: everybody who has the token reads all that was recorded.

    \b
    otel-chatdebug serve
    otel-chatdebug serve --port 0 --open
    OTEL_CHATDEBUG_TOKEN=$(openssl rand -hex 24) otel-chatdebug serve --host 0.0.0.0 --allow-host debug.lan
    """
    try:
        import uvicorn

        from otel_chatdebug.viewer import auth
        from otel_chatdebug.viewer.app import make_app
    except ModuleNotFoundError as exc:
        said = str(exc) if "[server]" in str(exc) else f"It needs {exc.name}: pip install 'otel-chatdebug[server]'."
        raise click.ClickException(said) from None
    from otel_chatdebug.tables import database
    from otel_chatdebug.words import clean

    chosen = settings(viewer_token=token)
    if token is not None and not token.strip():
        raise click.UsageError("--token is empty.")
    known = None if no_token else chosen.viewer_token or None
    if not auth.is_loopback(host) and known is None:
        raise click.UsageError(
            f"Other machines can reach {host}, so it takes a token of yours: --token, or better OTEL_CHATDEBUG_TOKEN, "
            "which no list of processes shows."
        )
    try:
        database.check_url(chosen.database_url)
    except database.DatabaseError as exc:
        raise click.ClickException(clean(exc)) from None
    known = None if no_token else known or auth.new_token()
    app = make_app(chosen, auth.Access(known, open=no_token), auth.Hosts.of(host, allow_hosts))
    with _listen(host, port) as listener:
        address = _address(host, listener.getsockname()[1], root_path)
        link = address if known is None or token or chosen.viewer_token else f"{address}?token={known}"
        click.echo(f"What was recorded in {clean(database.redacted(chosen.database_url))} is at\n\n    {link}\n")
        if known is not None and link == address:
            click.echo("Add ?token= and your token, once. ", nl=False)
        click.echo("Ctrl-C ends it.")
        if open_browser:
            click.launch(link)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would hold the token
            server_header=False,
            root_path=root_path.rstrip("/"),
            lifespan="on",
            timeout_graceful_shutdown=LEAVE_SECONDS,
        )
        # When it has stopped in good order, uvicorn raises the signal again for whoever is around it.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. A port that is taken is one sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise click.ClickException(
            f"It cannot listen on {host}, port {port}: {exc.strerror or exc}. --port 0 takes any free port."
        ) from None
    return listener


def _address(host: str, port: int, root_path: str) -> str:
    shown = host.strip("[]")
    if shown in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    if ":" in shown:
        shown = f"[{shown}]"
    return f"http://{shown}:{port}{root_path.rstrip('/')}/"
