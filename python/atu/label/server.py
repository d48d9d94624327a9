"""The server of the page: its files, thumbnails by number, marks, the run."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .guard import Guard, TooLarge
from .session import JUDGED
from .studio import Studio

STATIC = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "grid.js": "text/javascript",
    "panel.js": "text/javascript",
    "server.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
MOST_AT_ONCE = 20_000  # marks in one request
# A report has its styles and pictures in itself, and no scripts.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
PATIENCE = 60.0  # seconds for a thumbnail to be made


class _Page:
    """The routes' functions."""

    def __init__(self, studio: Studio):
        self.studio = studio
        folder = resources.files("atu.label") / "static"
        self.files = {name: (folder / name).read_bytes() for name in ("index.html", *STATIC)}

    async def index(self, request: Request) -> Response:
        return Response(self.files["index.html"], media_type="text/html")

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not found\n", 404)
        return Response(self.files[name], media_type=STATIC[name])

    async def thumb(self, request: Request) -> Response:
        number, index = request.path_params["round"], request.path_params["index"]
        pool = self.studio.pools.get(number)
        if pool is None or index >= pool.size:
            return PlainTextResponse("not found\n", 404)
        return await self._picture(request, number, index)

    async def blind(self, request: Request) -> Response:
        number, position = request.path_params["round"], request.path_params["position"]
        if number not in self.studio.judged or position >= 2 * JUDGED:
            return PlainTextResponse("not found\n", 404)
        return await self._picture(request, number, -1 - position)

    async def _picture(self, request: Request, number: int, index: int) -> Response:
        waited = 0.0
        while (data := self.studio.thumb(number, index)) is None:
            if waited > PATIENCE or await request.is_disconnected():
                return PlainTextResponse("not made yet\n", 503)
            self.studio.want(number, index)
            await asyncio.sleep(0.03)
            waited += 0.03
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=86400, immutable"})

    async def state(self, request: Request) -> Response:
        try:
            since = int(request.query_params.get("since", "-1"))
            number = int(request.query_params.get("round", "0"))
        except ValueError:
            return _refused("since and round: expected integers")
        return JSONResponse(self.studio.state(since, number))

    async def mark(self, request: Request) -> Response:
        data = await request.json()
        at = data["at"]
        if not isinstance(at, list) or not 0 < len(at) <= MOST_AT_ONCE:
            return _refused(f"at: expected 1 to {MOST_AT_ONCE} indices")
        if data["round"] != self.studio.number:
            return _refused("this round is over; load the page again", 409)
        via = str(data.get("via", ""))[:20]
        return await self._change(data, lambda: self.studio.mark(at, data["label"], via))

    async def undo(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.session.undo)

    async def redo(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.session.redo)

    async def run(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.unlearn)

    async def anew(self, request: Request) -> Response:
        return await self._change(await request.json(), lambda: self.studio.unlearn(anew=True))

    async def stop(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.runs.stop)

    async def round(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.next_round)

    async def _change(self, data: Any, change: Callable[[], Any]) -> Response:
        """Do it in a thread (it waits for the disk), then answer with the state."""
        await run_in_threadpool(change)
        self.studio.touched()
        return JSONResponse(self.studio.state(int(data.get("since", -1)), int(data.get("round", 0))))

    async def reveal(self, request: Request) -> Response:
        return await self._change(await request.json(), self.studio.reveal)

    async def report(self, request: Request) -> Response:
        number = request.path_params["round"]
        if number not in self.studio.pools or not self.studio.runs.finished(number):
            return PlainTextResponse("there is no report yet\n", 404)
        text = await run_in_threadpool(self.studio.runs.report(number).read_bytes)
        return Response(text, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})


def _refused(text: str, status: int = 400) -> Response:
    return JSONResponse({"error": text}, status)


async def _bad_input(request: Request, error: Exception) -> Response:
    return _refused("expected a JSON object" if isinstance(error, json.JSONDecodeError) else str(error))


async def _bad_shape(request: Request, error: Exception) -> Response:
    return _refused("a field is missing, or of another type")


async def _disk(request: Request, error: Exception) -> Response:
    return _refused(f"not saved: {error}", 507)


async def _too_large(request: Request, error: Exception) -> Response:
    return _refused("too large", 413)


def make_app(studio: Studio, port: int) -> Guard:
    """The ASGI application, guarded."""
    page = _Page(studio)
    routes = [
        Route("/", page.index),
        Route("/static/{name}", page.static),
        Route("/thumb/{round:int}/{index:int}", page.thumb),
        Route("/blind/{round:int}/{position:int}", page.blind),
        Route("/report/{round:int}", page.report),
        Route("/api/state", page.state),
        *(Route(f"/api/{f.__name__}", f, methods=["POST"]) for f in (page.mark, page.undo, page.redo)),
        *(Route(f"/api/{f.__name__}", f, methods=["POST"]) for f in (page.run, page.anew, page.stop)),
        *(Route(f"/api/{f.__name__}", f, methods=["POST"]) for f in (page.round, page.reveal)),
    ]
    errors: dict[Any, Any] = {
        ValueError: _bad_input,
        KeyError: _bad_shape,
        TypeError: _bad_shape,
        AttributeError: _bad_shape,
        OSError: _disk,
        TooLarge: _too_large,
    }
    return Guard(Starlette(routes=routes, exception_handlers=errors), port)


def serve(studio: Studio, told: Callable[[str], Any]) -> None:
    """Serve the page on a free port of 127.0.0.1 until Ctrl-C, SIGTERM or the terminal's end; then write the files.

    told: called once with the link that opens the page.
    """
    with socket.socket() as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            guard = make_app(studio, port)
            settings = uvicorn.Config(
                guard, log_level="error", access_log=False, server_header=False, lifespan="off", ws="none",
                timeout_graceful_shutdown=2,
            )  # fmt: skip
            server = uvicorn.Server(settings)
            for number in (signal.SIGTERM, signal.SIGHUP):  # uvicorn would let them kill the process once it has ended
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            studio.start()
            told(f"http://127.0.0.1:{port}/?token={guard.token}")
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # raised again by uvicorn once it has stopped
            pass
        finally:
            studio.close()
