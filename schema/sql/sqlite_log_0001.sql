-- The embedded log: what a Kafka topic with its dead-letter topic is in production.
CREATE TABLE log_identity (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    identity   TEXT    NOT NULL,
    partitions INTEGER NOT NULL
) STRICT;

-- Records of all partitions that were committed together. Rows are only ever added, at the end, so that a commit
-- writes few pages. Numbers have no gaps and ends never fall, so that an offset is found by bisection.
CREATE TABLE log_batches (
    number  INTEGER PRIMARY KEY,
    ends    BLOB NOT NULL, -- of every partition, after this batch
    records BLOB NOT NULL
) STRICT;

CREATE TABLE dead_letters (
    offset    INTEGER PRIMARY KEY,
    timestamp INTEGER NOT NULL,
    key       BLOB,
    value     BLOB,
    headers   BLOB    NOT NULL
) STRICT;
