-- Persistence Service: the two tables. Idempotent: run it as often as you like.
--
--   mariadb < sql/schema.sql   or   .venv/bin/python -m flusher.schema   (takes the configured database's name)
--
-- Keys compare byte by byte and keep trailing spaces (NO PAD), as the merge rule in memory does; the collation
-- with that meaning has one name on MySQL and another on MariaDB, hence the versioned comments.
-- There is no foreign key from tasks to sessions: with batches and several nodes a task may arrive first.

CREATE DATABASE IF NOT EXISTS ai_terminal CHARACTER SET utf8mb4;
USE ai_terminal;

CREATE TABLE IF NOT EXISTS translation_sessions (
    session_id       VARCHAR(36)   NOT NULL,
    filename         VARCHAR(255)  NOT NULL,
    file_path        VARCHAR(512)  NOT NULL,
    status           VARCHAR(20)   NOT NULL,
    llm_provider     VARCHAR(50)   NOT NULL,
    game_info        JSON          NULL,
    metadata         JSON          NULL,
    total_tasks      INT           NOT NULL DEFAULT 0,
    completed_tasks  INT           NOT NULL DEFAULT 0,
    failed_tasks     INT           NOT NULL DEFAULT 0,
    processing_tasks INT           NOT NULL DEFAULT 0,
    updated_at       DATETIME(6)   NOT NULL,
    created_at       DATETIME(6)   NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (session_id),
    KEY ix_sessions_status (status),
    KEY ix_sessions_updated_at (updated_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */;

CREATE TABLE IF NOT EXISTS translation_tasks (
    task_id       VARCHAR(64)   NOT NULL,
    batch_id      VARCHAR(64)   NOT NULL,
    session_id    VARCHAR(36)   NOT NULL,
    sheet_name    VARCHAR(255)  NOT NULL,
    column_name   VARCHAR(255)  NOT NULL,
    row_index     INT           NOT NULL,
    source_text   MEDIUMTEXT    NOT NULL,
    status        VARCHAR(20)   NOT NULL,
    target_text   MEDIUMTEXT    NULL,
    context       MEDIUMTEXT    NULL,
    error_message MEDIUMTEXT    NULL,
    confidence    DECIMAL(5,4)  NULL,
    retry_count   INT           NOT NULL DEFAULT 0,
    start_time    DATETIME(6)   NULL,
    end_time      DATETIME(6)   NULL,
    duration_ms   INT           NULL,
    updated_at    DATETIME(6)   NOT NULL,
    created_at    DATETIME(6)   NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (task_id),
    KEY ix_tasks_session_status (session_id, status),
    KEY ix_tasks_batch (batch_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */;
