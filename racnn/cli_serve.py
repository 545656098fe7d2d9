"""The command that serves a page."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from racnn.cli_checkpoint import ONNX, Device, MarksFile, restore_any
from racnn.errors import ConfigError

if TYPE_CHECKING:
    from racnn.engine.predictor import Predictor
    from racnn.portable.network import PortableNetwork


def serve(
    network: Annotated[
        Path, typer.Argument(metavar="NETWORK", help="A checkpoint, an exported .safetensors or .onnx file.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="A host name that it may be asked by, such as birds.example.org; repeatable.",
        ),
    ] = None,
    marks: MarksFile = None,
    device: Device = "auto",
) -> None:
    """Serve a page to drop a photo on, and answer programs: POST /predict with a form whose field `photo` is the file."""
    try:
        import uvicorn

        from racnn.serve.app import create_app
    except ImportError as error:
        raise ConfigError(
            f"serve: needs {error.name}: pip install fastapi, uvicorn and python-multipart, or the extra 'serve'"
        ) from None
    from racnn.data.marks import read_marks

    answering = _with_levels(network, device)
    known = None if marks is None else read_marks(marks, answering.class_names, flag="--marks")
    listening = _listen(host, port)
    app = create_app(
        answering,
        name=network.resolve().parent.name + "/" + network.name,
        hosts=[host, *(names or [])],
        marks=known,
    )
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


def _with_levels(network: Path, device: str) -> Predictor | PortableNetwork:
    """Return a network that answers at the level that is sure where that was chosen before."""
    if network.suffix == ONNX:
        from racnn.portable.network import open_onnx

        return open_onnx(network, device=device, levels=None)
    from racnn.evaluation.levels import caution_file

    return restore_any(network, device, levels=caution_file(network).is_file())


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket at an address.

    Raises:
        ConfigError: There is no such address here, or it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # who asks before the network is ready waits
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; choose another one"
        ) from None
    return listening
