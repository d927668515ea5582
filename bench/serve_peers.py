"""The least that serves an index: FastAPI and uvicorn, one process, no keys, no log, no limits.

    python -m bench.serve_peers PORT INDEX

POST /knn?k=10 takes and gives the bytes of /v1/knn/raw. The search runs on the event loop, which is
as fast as it gets for one vector and keeps all others waiting for 64.
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request, Response

from rec import wire
from rec.retrieval.index import Index


def make_app(uri: str) -> FastAPI:
    index = Index.open(uri)
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/knn")
    async def knn(request: Request, k: Annotated[int, Query(ge=1)] = 10) -> Response:
        rows = wire.unpack_rows(await request.body(), index.dim)
        hits = index.search(rows, k)
        ids = index.id_bytes(hits.rows.ravel())
        counts = np.full(len(rows), k)
        body = wire.pack_hits(counts, hits.scores.ravel(), *ids)
        return Response(body, media_type=wire.MEDIA_TYPE)

    return app


if __name__ == "__main__":
    app = make_app(sys.argv[2])
    print("serving at", sys.argv[1], flush=True)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
