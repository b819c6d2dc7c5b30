"""A shop on Flask: an order and the job that submits it are one transaction of SQLAlchemy's `Session`."""

import atexit
import os
from typing import Any

from flask import Flask, abort, request
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import sessionmaker

from archibald_pgq import Archibald, InvalidJobError, JobContext, UnknownJobError

TABLES = """
CREATE TABLE IF NOT EXISTS stock (article text PRIMARY KEY, pieces int CHECK (pieces >= 0));
CREATE TABLE IF NOT EXISTS orders (job_id bigint PRIMARY KEY, customer text, article text, pieces int)
"""
queue = Archibald()


@queue.operation("submit-order")
async def submit_order(ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
    await ctx.progress(50, "typing the order")
    return {"submitted": data["article"]}


def create_app() -> Flask:
    site = Flask(__name__)
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        for statement in TABLES.split(";"):
            session.execute(text(statement))
    engine.dispose()  # whoever forks this process now shares no connection with it; the queue sees to that by itself
    atexit.register(engine.dispose)
    atexit.register(queue.sync.close)

    @site.post("/orders")
    def place() -> tuple[dict[str, int], int]:
        row = {name: request.json[name] for name in ("customer", "article", "pieces")}
        key = request.headers.get("Idempotency-Key")
        try:
            with sessions.begin() as session:
                job = queue.sync.enqueue(
                    "submit-order", user_id=row["customer"], data=row, idempotency_key=key, connection=session
                )
                insert = (
                    "INSERT INTO orders VALUES (:job, :customer, :article, :pieces) ON CONFLICT DO NOTHING RETURNING 1"
                )
                if session.execute(text(insert), {"job": job.id, **row}).first():  # else this request is a repetition
                    take = "UPDATE stock SET pieces = pieces - :pieces WHERE article = :article"
                    session.execute(text(take), row)
        except IntegrityError:
            abort(409, "so many are not in stock")  # no order and no job
        return {"job": job.id}, 202

    @site.get("/jobs/<int:job_id>")
    def status(job_id: int) -> dict[str, Any]:
        job = queue.sync.job(job_id)
        return {"state": job.state, "progress": job.progress, "result": job.result, "error": job.error}

    @site.errorhandler(InvalidJobError)
    def invalid(error: InvalidJobError) -> tuple[dict[str, str], int]:
        return {"detail": str(error)}, 422

    @site.errorhandler(UnknownJobError)
    def unknown(error: UnknownJobError) -> tuple[dict[str, str], int]:
        return {"detail": str(error)}, 404

    return site
