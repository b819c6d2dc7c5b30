"""A shop on FastAPI: an order and the job that submits it are one transaction of SQLAlchemy's `AsyncSession`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, PositiveInt
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

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


@asynccontextmanager
async def lifespan(site: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    async with queue:  # closed at the end, as the engine is
        async with engine.begin() as connection:
            for statement in TABLES.split(";"):
                await connection.execute(text(statement))
        site.state.sessions = async_sessionmaker(engine)
        yield
    await engine.dispose()


site = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    customer: str
    article: str
    pieces: PositiveInt


@site.post("/orders", status_code=202)
async def place(order: Order, idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, int]:
    row = order.model_dump()
    try:
        async with site.state.sessions.begin() as session:
            job = await queue.enqueue(
                "submit-order", user_id=order.customer, data=row, idempotency_key=idempotency_key, connection=session
            )
            insert = "INSERT INTO orders VALUES (:job, :customer, :article, :pieces) ON CONFLICT DO NOTHING RETURNING 1"
            if (
                await session.execute(text(insert), {"job": job.id, **row})
            ).first():  # else this request is a repetition
                take = "UPDATE stock SET pieces = pieces - :pieces WHERE article = :article"
                await session.execute(text(take), row)
    except IntegrityError:
        raise HTTPException(409, "so many are not in stock") from None  # no order and no job
    return {"job": job.id}


@site.get("/jobs/{job_id}")
async def status(job_id: int) -> dict[str, Any]:
    try:
        job = await queue.job(job_id)
    except UnknownJobError as error:
        raise HTTPException(404, str(error)) from None
    return {"state": job.state, "progress": job.progress, "result": job.result, "error": job.error}


@site.exception_handler(InvalidJobError)
async def invalid(_request: Request, error: InvalidJobError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)
