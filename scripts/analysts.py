"""What scripts/analysts runs: see there."""

import datetime
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

import boto3
import cloudevents.core.bindings.kafka as kafka_binding
import cloudevents.core.formats.json as cloud_json
import duckdb
import jsonschema
import pandas
import polars
import pyarrow.parquet
import pymysql
import yaml
from cloudevents.core.v1.event import CloudEvent

BINARY = sys.argv[1]
SPARK = "--spark" in sys.argv
ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/analysts.md").read_text()
SCHEMA = json.loads((ROOT / "schema/json/like_toggled_v1.json").read_text())


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.S | re.M)


def check(what, found, expected):
    assert found == expected, f"{what}: {found} is not {expected}"
    print(f"  {what}: {found if isinstance(found, (int, str)) else len(found)}")


class Service:
    """The binary on a folder, with records on a server if there is one."""

    def __init__(self, folder, records):
        self.settings = ["--data-dir", str(folder)] + (["--records", records] if records else [])
        listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        if records:
            subprocess.run([BINARY, "migrate", *self.settings], check=True, stdout=subprocess.DEVNULL)
        self.process = subprocess.Popen([BINARY, "serve", *self.settings, *listen], stdout=subprocess.PIPE, text=True)
        self.base = self.process.stdout.readline().split()[-1]

    def call(self, path, body=None):
        request = urllib.request.Request(self.base + path, body and json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def run(self, *arguments, **options):
        done = subprocess.run([BINARY, *arguments, *self.settings], check=True, capture_output=True, **options)
        return done.stdout

    def fill(self, batches):
        """Likes and unlikes of a skewed crowd; some commands are sent twice."""
        dice = random.Random(1)
        last = None
        for _ in range(batches):
            pairs = set()
            while len(pairs) < 100:
                content = int(dice.paretovariate(0.7))
                pairs.add((dice.randint(1, 400), min(content, 60)))
            commands = [dict(requestId=str(uuid.uuid4()), userId=user, contentType="clip" if content % 5 == 0 else "post",
                             contentId=content, liked=dice.random() < 0.75) for user, content in pairs]
            answer = self.call("/v1/likes/batch", {"commands": commands})
            last = [result for result in answer["results"] if result.get("position")] or last
        # The last event of each content is projected.
        for result in last:
            self.call(f"/v1/contents/{result['contentType']}/{result['contentId']}/likes?after={result['position']}&wait=5")

    def counts(self):
        found = {}
        for content in range(1, 61):
            kind = "clip" if content % 5 == 0 else "post"
            answer = self.call(f"/v1/contents/{kind}/{content}/likes?viewer=1")
            if answer["count"]:
                found[kind, content] = answer["count"]
        return found


def settled(service):
    """Waits until the records have every event."""
    for _ in range(300):
        digest = json.loads(service.run("digest", "--json"))
        events = len(service.run("tail", "--lines", "all").splitlines())
        if sum(digest["applied"]) == events:
            return events
        time.sleep(0.1)
    sys.exit("the projection does not end")


def notebook(service, likes, events, counts):
    print("docs/analysts.md, run as it stands")
    connection = duckdb.connect()
    results = []
    for block in blocks("sql"):
        results.append(connection.execute(block.replace("'likes/", f"'{likes}/")).fetchall())
    days, top, cohorts, both, rising, state = results[2:]
    total = sum(likes - unlikes for _, likes, unlikes, _ in days)
    check("likes less unlikes of all days", total, sum(counts.values()))
    check("counts of the greatest", {(kind, content): int(count) for kind, content, count in top},
          dict(sorted(counts.items(), key=lambda of: (-of[1], of[0]))[:20]))
    users = connection.execute("SELECT count(DISTINCT user_id) FROM events WHERE liked").fetchone()[0]
    check("users of all cohorts in their first week", sum(likers for _, later, likers in cohorts if later == 0), users)
    assert both and both[0][4] > 1 and all(row[:2] < row[2:4] for row in both), both
    assert rising and all(took >= datetime.timedelta() for _, _, took in rising), rising
    check("contents that reached 100 likes", {row[:2] for row in rising} >= {key for key, count in counts.items() if count >= 100}, True)
    before = connection.execute("SELECT count(*) FROM events WHERE received_at <= now() - INTERVAL 1 MINUTE").fetchone()[0]
    check("likes a minute ago, when there were none", (len(state), before), (0, 0))
    named = json.loads(service.run("top", "--window", "1d", "--limit", "20", "--json"))["items"]
    check("likewise top", [item["content"] for item in named],
          [f"{kind}:{content}" for kind, content, _ in top][: len(named)])
    script = re.search(r"`likewise replay --to - --format csv \| duckdb -c \"(.*?)\"`", PAGE, re.S).group(1)
    csv = service.run("replay", "--to", "-", "--format", "csv")
    (likes / "../all.csv").write_bytes(csv)
    found = connection.execute(script.replace("/dev/stdin", str(likes / "../all.csv"))).fetchall()
    check("events as CSV", sum(count for _, count in found), events)
    described = connection.execute(f"DESCRIBE SELECT * EXCLUDE (day, partition) FROM read_parquet('{likes}/**/*.parquet')")
    columns = [row[0] for row in described.fetchall()]
    documented = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in PAGE.split("## The columns")[1].split("## A notebook")[0].splitlines() if line.startswith("| `")))
    check("columns that the page describes", sorted(documented), sorted(columns))
    return connection


def readers(likes, events, connection):
    print("pandas, Polars")
    ids = {row[0] for row in connection.execute(f"SELECT request_id FROM read_parquet('{likes}/**/*.parquet')").fetchall()}
    schemas = {str(pyarrow.parquet.read_schema(path).remove_metadata()) for path in likes.rglob("*.parquet")}
    check("schemas of all files, whatever their rows", len(schemas), 1)
    frame = pandas.read_parquet(likes)
    check("rows by pandas", (len(frame), set(frame["request_id"]) == ids, str(frame["received_at"].dtype)),
          (events, True, "datetime64[ms, UTC]"))
    lazy = polars.scan_parquet(f"{likes}/**/*.parquet", hive_partitioning=True).collect()
    check("rows by Polars", (len(lazy), set(lazy["request_id"]) == ids), (events, True))
    by_partition = lazy.group_by("log_partition").agg(
        polars.len().alias("rows"), polars.col("log_offset").max().alias("last"), polars.col("log_offset").n_unique().alias("offsets"))
    assert all(row["rows"] == row["last"] + 1 == row["offsets"] for row in by_partition.iter_rows(named=True)), by_partition


def by_spark(likes, events, connection):
    from pyspark.sql import SparkSession, Window, functions as f

    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").config("spark.sql.session.timeZone", "UTC").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    frame = spark.read.parquet(str(likes))
    check("rows by Spark", frame.count(), events)
    pair = ["content_type", "content_id", "user_id"]
    once = Window.partitionBy(*pair, "request_id").orderBy("log_offset")
    order = Window.partitionBy(*pair).orderBy("log_offset")
    accepted = frame.where("problem IS NULL").withColumn("n", f.row_number().over(once)).where("n = 1")
    changes = accepted.withColumn("was", f.lag("liked", 1, False).over(order)).where("liked <> was")
    counts = changes.groupBy("content_type", "content_id").agg(f.sum(f.when(f.col("liked"), 1).otherwise(-1)).alias("count"))
    found = {(row[0], row[1]): row[2] for row in counts.collect()}
    expected = connection.execute("SELECT content_type, content_id, sum(change) FROM changes GROUP BY ALL").fetchall()
    check("counts by Spark", found, {(kind, content): int(count) for kind, content, count in expected})
    spark.stop()


def contracts(service, events):
    print("CloudEvents, JSON Schema, AsyncAPI")
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    lines = service.run("tail", "--lines", "all", "--json").splitlines()
    reader = cloud_json.JSONFormat()
    for line in lines:
        event = reader.read(CloudEvent, line)
        data = event.get_data()
        validator.validate(data)
        assert event.get_id() == data["requestId"] and event.get_type() == "LikeToggled.v1", line
        assert event.get_subject() == f"{data['contentType']}/{data['contentId']}", line
        assert event.get_extension("partition") in range(16) and event.get_extension("offset").isdigit(), line
    check("CloudEvents read by the SDK", len(lines), events)
    raw = [json.loads(line) for line in service.run("tail", "--lines", "100", "--raw").splitlines()]
    for record in raw:
        # As a Kafka client gives it to the SDK: binary mode.
        headers = {name: value.encode() for name, value in record["headers"]}
        message = kafka_binding.KafkaMessage(headers=headers, key=record["key"].encode(), value=json.dumps(record["value"]).encode())
        event = kafka_binding.from_binary(message, reader, CloudEvent)
        assert event.get_id() == record["key"] and event.get_data()["userId"], record
    check("records read by the SDK's Kafka binding", len(raw), 100)
    vectors = json.loads((ROOT / "schema/vectors/events.json").read_text())
    for vector in (vector for vector in vectors if vector["outcome"] == "event"):
        validator.validate(json.loads(vector["value"]))
    about_values = ("id as a number", "user 0", "negative content", "liked as a number", "liked is missing", "no receivedAt", "upper-case type", "array in place")
    refused = [vector for vector in vectors if any(word in vector["note"] for word in about_values)]
    check("vectors that the schema refuses", sum(not validator.is_valid(json.loads(vector["value"])) for vector in refused), len(about_values))
    document = yaml.safe_load((ROOT / "schema/asyncapi.yaml").read_text())
    message = document["components"]["messages"]["LikeToggled.v1"]
    validator.validate(message["examples"][0]["payload"])
    check("the AsyncAPI document's payload", message["payload"]["$ref"], "./json/like_toggled_v1.json")
    headers = message["headers"]["properties"]
    check("headers of a record that AsyncAPI describes", sorted(raw[0]["headers"][index][0] for index in range(len(raw[0]["headers"]))), sorted(headers))


def to_s3(service, likes, events):
    print("S3")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen([str(pathlib.Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        known = dict(AWS_ENDPOINT_URL=endpoint, AWS_ALLOW_HTTP="true", AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY="secret-of-someone", AWS_REGION="us-east-1")
        client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="someone", aws_secret_access_key="x", region_name="us-east-1")
        for _ in range(300):
            try:
                client.create_bucket(Bucket="likes")
                break
            except Exception:
                time.sleep(0.1)
        environment = {**os.environ, **known}
        run = lambda *arguments: json.loads(service.run("export", "--to", "s3://likes/all", *arguments, "--json", env=environment))
        check("events exported", run()["records"], events)
        check("events exported again", run()["records"], 0)
        state = run("--check")
        check("events found whole", (state["records"], state["missing"]), (events, 0))
        names = {item["Key"].split("/", 1)[1] for page in client.get_paginator("list_objects_v2").paginate(Bucket="likes") for item in page["Contents"]}
        check("files as in a folder", names, {str(path.relative_to(likes)) for path in likes.rglob("*.parquet")})
        for what, target, changed in [("does not exist", "s3://nowhere/all", {}), ("cannot be", "s3://likes/all", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})]:
            failed = subprocess.run([BINARY, "export", "--to", target, *service.settings], capture_output=True, text=True, env={**environment, **changed})
            assert failed.returncode == 1 and what in failed.stderr and len(failed.stderr.splitlines()) == 1, failed.stderr
            assert "secret-of-someone" not in failed.stderr, failed.stderr
            print(" ", failed.stderr.strip())
    finally:
        server.kill()
        server.wait()


def by_mysql(url, counts):
    print("MySQL")
    host, port, database = re.match(r"mysql://root@([^:]+):(\d+)/(\w+)", url).groups()
    connection = pymysql.connect(host=host, port=int(port), user="root", database=database)
    results = []
    with connection.cursor() as cursor:
        for block in blocks("mysql"):
            cursor.execute(block)
            results.append(cursor.fetchall())
    top, days = results
    check("counts of the greatest", {(kind, content): int(likes) for kind, content, likes, _ in top if likes},
          dict(sorted(counts.items(), key=lambda of: (-of[1], of[0]))[:20]))
    check("likes of all days", sum(likes for _, likes in days), sum(counts.values()))


def main():
    server = os.environ.get("LIKEWISE_TEST_MYSQL")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        records = None
        if server:
            database = f"analysts_{os.getpid()}"
            host, port = re.match(r"mysql://root@([^:/]+):(\d+)", server).groups()
            pymysql.connect(host=host, port=int(port), user="root").cursor().execute(f"CREATE DATABASE {database}")
            records = f"mysql://root@{host}:{port}/{database}?ssl-mode=disabled"
        service = Service(folder / "data", records)
        try:
            service.fill(60)
            events = settled(service)
            counts = service.counts()
            likes = folder / "likes"
            service.run("export", "--to", str(likes))
            connection = notebook(service, likes, events, counts)
            readers(likes, events, connection)
            contracts(service, events)
            to_s3(service, likes, events)
            if SPARK:
                by_spark(likes, events, connection)
            if records:
                by_mysql(records, counts)
        finally:
            service.process.terminate()
            service.process.wait()
    print("all agree")


main()
