-- The embedded records. One table holds all of the file's shards; its clustered key keeps a content's rows together, and gives
-- each pair exactly one row. Keys begin with a number, which is compared faster than a text.
CREATE TABLE like_records (
    content_type  TEXT    NOT NULL,
    content_id    INTEGER NOT NULL,
    user_id       INTEGER NOT NULL,
    is_canceled   INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    liked_at      INTEGER,
    version       INTEGER NOT NULL,
    request_ring  BLOB    NOT NULL,
    request_floor BLOB,
    listed        INTEGER NOT NULL, -- whether idx_content has it: a content with few rows is listed by sorting them
    PRIMARY KEY (content_id, content_type, user_id)
) STRICT, WITHOUT ROWID;

-- Likers of a content and likes of a user, newest first, from the index alone.
CREATE INDEX idx_content ON like_records (content_id, content_type, liked_at DESC, user_id)
    WHERE is_canceled = 0 AND listed = 1;
CREATE INDEX idx_user ON like_records (user_id, liked_at DESC, content_type, content_id) WHERE is_canceled = 0;

CREATE TABLE like_counts (
    content_id     INTEGER NOT NULL,
    content_type   TEXT    NOT NULL,
    partition      INTEGER NOT NULL,
    count          INTEGER NOT NULL,
    rows           INTEGER NOT NULL, -- of like_records, cancelled ones too
    version        INTEGER NOT NULL,
    first_position INTEGER NOT NULL,
    PRIMARY KEY (content_id, content_type)
) STRICT, WITHOUT ROWID;

-- For those who keep a filter of the contents that there are.
CREATE INDEX idx_first ON like_counts (partition, first_position);

-- Likes gained and lost per ten minutes, for trending; not part of the digest.
CREATE TABLE like_buckets (
    slot         INTEGER NOT NULL,
    content_id   INTEGER NOT NULL,
    content_type TEXT    NOT NULL,
    gained       INTEGER NOT NULL,
    lost         INTEGER NOT NULL,
    PRIMARY KEY (slot, content_id, content_type)
) STRICT, WITHOUT ROWID;

-- Which shards this file holds; fixed when it is made.
CREATE TABLE record_shards (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    first INTEGER NOT NULL,
    last  INTEGER NOT NULL
) STRICT;

CREATE TABLE projection_checkpoints (
    partition      INTEGER PRIMARY KEY,
    epoch          INTEGER NOT NULL,
    next_offset    INTEGER NOT NULL,
    mark_key       BLOB,
    mark_timestamp INTEGER,
    log_identity   TEXT    NOT NULL,
    generation     INTEGER NOT NULL,
    partitions     INTEGER NOT NULL,
    fold_version   INTEGER NOT NULL,
    log_end        INTEGER NOT NULL,
    next_event_at  INTEGER,
    heard_at       INTEGER NOT NULL
) STRICT;
