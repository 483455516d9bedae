-- One shard. A row is never deleted: is_canceled says that the like was taken back.
CREATE TABLE like_records_{shard} (
    id            BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    user_id       BIGINT         NOT NULL,
    content_id    BIGINT         NOT NULL,
    content_type  VARCHAR(20)    NOT NULL,
    created_at    DATETIME(3)    NOT NULL,
    updated_at    DATETIME(3)    NOT NULL,
    is_canceled   TINYINT(1)     NOT NULL,
    liked_at      DATETIME(3)    NULL,
    version       BIGINT         NOT NULL,
    request_ring  VARBINARY(256) NOT NULL,
    request_floor BINARY(16)     NULL,
    UNIQUE KEY uk_user_content (user_id, content_id, content_type),
    -- A content's likers and a user's likes, newest first.
    KEY idx_content (content_id, content_type, is_canceled, liked_at DESC, user_id),
    KEY idx_user (user_id, is_canceled, liked_at DESC, content_type, content_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
