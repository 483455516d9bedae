-- The records of one server, MySQL 8.4 or newer or MariaDB 10.11 or newer. The tables of each shard follow.
-- Times are UTC, from the events.
CREATE TABLE like_counts (
    content_id     BIGINT      NOT NULL,
    content_type   VARCHAR(20) NOT NULL,
    `partition`    SMALLINT    NOT NULL,
    `count`        BIGINT      NOT NULL,
    version        BIGINT      NOT NULL,
    first_position BIGINT      NOT NULL,
    PRIMARY KEY (content_id, content_type)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Likes gained and lost per ten minutes, for trending; not part of the digest.
CREATE TABLE like_buckets (
    `partition`  SMALLINT    NOT NULL,
    slot         BIGINT      NOT NULL,
    content_id   BIGINT      NOT NULL,
    content_type VARCHAR(20) NOT NULL,
    gained       BIGINT      NOT NULL,
    lost         BIGINT      NOT NULL,
    PRIMARY KEY (`partition`, slot, content_id, content_type)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

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
