"""The application: the page, its answers, and what it refuses.

Nothing is stored. A few photos are received at a time, so that memory is bounded, and looked at one after the other; they are refused
by their size or header before they are decoded. Requests that name another host, or come from another site's page, are refused, so that no web page that its user happens to
visit can ask a server that runs on the same machine.
"""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from racnn import __version__
from racnn.data.image_io import read_reduced
from racnn.data.marks import Marks, in_plain_types
from racnn.errors import DataError
from racnn.evaluation import draw
from racnn.portable.answers import Prediction

MOST_BYTES = 20_000_000  # of a photo
MOST_PIXELS = 64_000_000
MOST_SIDE = 16_384  # pixels
MOST_WAITING = 64  # requests
MOST_RECEIVED = 32  # photos that are on their way or in memory
NO_FORM = "expected a form (multipart/form-data) with a file in the field 'photo'"
READING = 30.0  # seconds that a client has to send a photo
SHOWN = 900, 320  # longest sides of the photo and of a view on the page, pixels
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger("racnn.serve")


def create_app(network: Any, *, name: str, hosts: Iterable[str] = (), marks: Marks | None = None) -> FastAPI:
    """Return the application.

    ``POST /predict`` takes a form with a field ``photo`` and answers as ``racnn predict --json`` does, with ``looks`` besides;
    with ``?pictures=1`` also with pictures, as addresses that hold them: ``photo``, ``views`` and ``why``. ``GET /health`` says that it runs, and of
    what network.

    Args:
        network: :class:`racnn.engine.predictor.Predictor` or :class:`racnn.portable.network.PortableNetwork`.
        name: What to call it on the page.
        hosts: Names that it may be asked by, besides this machine's own and addresses in numbers.
        marks: Marks of the classes; answers then say by what the first one is usually told from the second.
    """
    app = FastAPI(title="racnn", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    allowed = {"localhost", *(host.lower() for host in hosts)}
    received, one_at_a_time = asyncio.Semaphore(MOST_RECEIVED), asyncio.Semaphore(1)
    waiting = 0
    folder = resources.files("racnn.serve") / "page"
    pages = {path: (folder / file).read_bytes() for path, file in FILES.items()}

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if not _is_allowed(request.headers.get("host", ""), allowed):
            response: Response = _refusal(421, "this host name is not served here; see racnn serve --name")
        elif _comes_from_elsewhere(request):
            response = _refusal(403, "pages of other sites are not answered")
        else:
            try:
                response = await answer(request)
            except Exception:
                log.exception("a request could not be answered")
                response = _refusal(500, "the photo could not be answered; the server's log says why")
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def misread(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _refusal(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "network": name, "classes": len(network.class_names)}

    def page(path: str) -> Callable[[], Awaitable[Response]]:
        async def send() -> Response:
            return Response(pages[path], media_type=KINDS[PurePosixPath(FILES[path]).suffix])

        return send

    for path in FILES:
        app.get(path)(page(path))

    @app.post("/predict")
    async def predict(
        request: Request, pictures: bool = False, top: Annotated[int, Query(ge=1, le=50)] = 5
    ) -> Response:
        nonlocal waiting
        if waiting >= MOST_WAITING:
            raise HTTPException(503, "too many photos are waiting; try again in a moment")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MOST_BYTES + 10_000:
            raise HTTPException(413, _too_large())
        waiting += 1
        try:
            async with received:  # others need not wait for one who sends slowly
                content = await asyncio.wait_for(_photo_of(request), READING)
                async with one_at_a_time:
                    found = await run_in_threadpool(partial(_answer, network, content, pictures, top, marks))
        except TimeoutError:
            raise HTTPException(408, f"the photo took longer than {READING:.0f} seconds to come") from None
        except ClientDisconnect:
            raise HTTPException(400, "the photo did not come to its end") from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            waiting -= 1
        return Response(json.dumps(found), media_type="application/json")  # names may hold what is no UTF-8

    return app


def _answer(network: Any, content: bytes, pictures: bool, top: int, marks: Marks | None) -> dict[str, Any]:
    photo, _ = read_reduced(content, None, most_pixels=MOST_PIXELS)
    if max(photo.shape) > MOST_SIDE:
        raise DataError(
            f"expected at most {MOST_SIDE} pixels a side, found {photo.shape[1]}x{photo.shape[0]}"
        )
    can_say_why = pictures and len(network.class_names) > 1
    found: Prediction = network.predict(photo, top=top if marks is None else max(top, 2), why=can_say_why)
    plain = found.to_dict()
    if marks is not None and len(found.top) > 1:
        answer, second = (name for name, _ in found.top[:2])
        plain["marks"] = in_plain_types(marks.telling(answer, second), second)
    plain["top"] = plain["top"][:top]
    if not pictures:
        return plain
    height, width = photo.shape[:2]
    views = [np.moveaxis(np.asarray(view), 0, -1) for view in found.views]
    return {
        **plain,
        "size": [width, height],
        "photo": _as_text(photo, SHOWN[0]),
        "views": [_as_text(view, SHOWN[1]) for view in views],
        "why": [
            _as_text(draw.heat(view, cells), SHOWN[1])
            for view, cells in zip(views, found.why or [], strict=False)
        ],
        "against": found.top[1][0] if found.why else None,
    }


async def _photo_of(request: Request) -> bytes:
    """Return the content of the field ``photo`` of a form, and no more of it than is let in."""
    received = 0
    receive = request._receive

    async def counted() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MOST_BYTES + 10_000:
            raise HTTPException(413, _too_large())
        return message

    request._receive = counted
    try:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(400, NO_FORM)
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=4)
        parser.spool_max_size = 2 * MOST_BYTES  # in memory, not in a file
        form = await parser.parse()
        photo = form.get("photo")
        if photo is None or isinstance(photo, str):
            raise HTTPException(400, NO_FORM)
        content = await photo.read()
        await form.close()
    except (MultiPartException, KeyError):  # KeyError: no boundary
        raise HTTPException(400, NO_FORM) from None
    if not content:
        raise HTTPException(422, "the photo is empty")
    return content


def _is_allowed(host: str, allowed: set[str]) -> bool:
    """Return whether a Host header names this server: a name that is allowed, or an address in numbers, which no name can stand for."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name.lower() in allowed:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _comes_from_elsewhere(request: Request) -> bool:
    """Return whether a page of another site asks, as browsers tell by one header or the other."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host", "")


def _as_text(picture: Any, side: int) -> str:
    image = draw.to_image(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _refusal(code: int, words: str) -> JSONResponse:
    return JSONResponse({"error": words}, status_code=code)


def _too_large() -> str:
    return f"the photo is larger than {MOST_BYTES // 1_000_000} MB"
