-- The embedded log: what a Kafka topic with its dead-letter topic is in production.
CREATE TABLE log_identity (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    identity   TEXT    NOT NULL,
    partitions INTEGER NOT NULL
) STRICT;

-- Rows are only ever added, at the next offset of their partition.
CREATE TABLE log_records (
    partition INTEGER NOT NULL,
    offset    INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    key       BLOB,
    value     BLOB,
    headers   BLOB    NOT NULL,
    PRIMARY KEY (partition, offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    offset    INTEGER PRIMARY KEY,
    timestamp INTEGER NOT NULL,
    key       BLOB,
    value     BLOB,
    headers   BLOB    NOT NULL
) STRICT;
