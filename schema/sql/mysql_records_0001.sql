-- The records of one server, MySQL 8.4 or newer or MariaDB 10.11 or newer. The tables of each shard follow.
-- Times are UTC, from the events.
CREATE TABLE like_counts (
    -- First in the key, so that a batch, which is of one shard, writes rows that lie together.
    shard          SMALLINT    NOT NULL,
    content_id     BIGINT      NOT NULL,
    content_type   VARCHAR(20) NOT NULL,
    `partition`    SMALLINT    NOT NULL,
    `count`        BIGINT      NOT NULL,
    version        BIGINT      NOT NULL,
    first_position BIGINT      NOT NULL,
    PRIMARY KEY (shard, content_id, content_type),
    -- For those who keep a filter of the contents that there are.
    KEY idx_first (`partition`, first_position)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Likes gained and lost per ten minutes, for trending; not part of the digest. Changes are appended to rows of many
-- contents, as `["post",42,1,0],…` (type, id, gained, lost), because a row for each content and slot would take over a
-- third of the time of projection. `chunk` is a batch's first offset by 256.
CREATE TABLE like_bucket_chunks (
    `partition` SMALLINT   NOT NULL,
    slot        BIGINT     NOT NULL,
    chunk       BIGINT     NOT NULL,
    changes     MEDIUMTEXT NOT NULL,
    PRIMARY KEY (`partition`, slot, chunk)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE VIEW like_buckets AS
SELECT c.content_type, c.content_id, b.slot, SUM(c.gained) AS gained, SUM(c.lost) AS lost
FROM like_bucket_chunks AS b
JOIN JSON_TABLE(CONCAT('[', b.changes, ']'), '$[*]' COLUMNS (
    content_type VARCHAR(20) PATH '$[0]', content_id BIGINT PATH '$[1]',
    gained BIGINT PATH '$[2]', lost BIGINT PATH '$[3]')) AS c
GROUP BY c.content_type, c.content_id, b.slot;

-- Which shards this server holds; fixed when its tables are made.
CREATE TABLE record_shards (
    one         TINYINT  NOT NULL PRIMARY KEY CHECK (one = 1),
    first_shard SMALLINT NOT NULL,
    last_shard  SMALLINT NOT NULL
) ENGINE = InnoDB;

-- Which prefix of each partition the tables reflect, and who may write them.
CREATE TABLE projection_checkpoints (
    `partition`    SMALLINT        NOT NULL PRIMARY KEY,
    epoch          BIGINT          NOT NULL,
    next_offset    BIGINT          NOT NULL,
    mark_key       VARBINARY(1024) NULL,
    mark_timestamp DATETIME(3)     NULL,
    log_identity   VARCHAR(255)    NOT NULL,
    generation     INT UNSIGNED    NOT NULL,
    partitions     SMALLINT        NOT NULL,
    fold_version   INT UNSIGNED    NOT NULL,
    log_end        BIGINT          NOT NULL,
    next_event_at  DATETIME(3)     NULL,
    heard_at       DATETIME(3)     NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
