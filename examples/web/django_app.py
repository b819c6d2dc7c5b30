"""A shop on Django, in one file: an order and the job that submits it are one `transaction.atomic()`."""

import json
import os
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, connection, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from psycopg.conninfo import conninfo_to_dict

from archibald_pgq import Archibald, InvalidJobError, JobContext, UnknownJobError

DATABASE = conninfo_to_dict(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["localhost", "testserver"],
    DATABASES={
        "default": {"ENGINE": "django.db.backends.postgresql", "NAME": DATABASE.pop("dbname"), "OPTIONS": DATABASE}
    },
    ROOT_URLCONF=__name__,
)
django.setup()
queue = Archibald()


@queue.operation("submit-order")
async def submit_order(ctx: JobContext, data: dict[str, Any]) -> dict[str, Any]:
    await ctx.progress(50, "typing the order")
    return {"submitted": data["article"]}


class Stock(models.Model):
    article = models.TextField(primary_key=True)
    pieces = models.PositiveIntegerField()  # the database refuses what is below 0

    class Meta:
        app_label = "shop"


class Order(models.Model):
    job_id = models.BigIntegerField(primary_key=True)
    customer, article, pieces = models.TextField(), models.TextField(), models.IntegerField()

    class Meta:
        app_label = "shop"


def create_tables() -> None:
    with connection.schema_editor() as editor:
        for model in (Stock, Order):
            if model._meta.db_table not in connection.introspection.table_names():
                editor.create_model(model)


def place(request: HttpRequest) -> JsonResponse:
    row = json.loads(request.body)
    key = request.headers.get("Idempotency-Key")
    try:
        with transaction.atomic():
            own = connection.connection  # psycopg's, in the transaction that has just begun
            job = queue.sync.enqueue(
                "submit-order", user_id=row["customer"], data=row, idempotency_key=key, connection=own
            )
            _, new = Order.objects.get_or_create(job_id=job.id, defaults=row)
            if new:  # else this request is a repetition
                Stock.objects.filter(article=row["article"]).update(pieces=models.F("pieces") - row["pieces"])
    except IntegrityError:
        return JsonResponse({"detail": "so many are not in stock"}, status=409)  # no order and no job
    except InvalidJobError as error:
        return JsonResponse({"detail": str(error)}, status=422)
    return JsonResponse({"job": job.id}, status=202)


def status(_request: HttpRequest, job_id: int) -> JsonResponse:
    try:
        job = queue.sync.job(job_id)
    except UnknownJobError as error:
        return JsonResponse({"detail": str(error)}, status=404)
    return JsonResponse({"state": job.state, "progress": job.progress, "result": job.result, "error": job.error})


urlpatterns = [path("orders", place), path("jobs/<int:job_id>", status)]
application = get_wsgi_application()

if __name__ == "__main__":
    create_tables()
    execute_from_command_line(sys.argv)
