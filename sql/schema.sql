-- Persistence Service: the two tables. Idempotent: run it as often as you like.
--
--   mariadb < sql/schema.sql   or   .venv/bin/python -m flusher.schema   (takes the configured database's name)
--
-- Keys compare byte by byte and keep trailing spaces (NO PAD), as the merge rule in memory does; the collation
-- with that meaning has one name on MySQL and another on MariaDB, hence the versioned comments.
-- The table comment is the version of the tables; tables of an earlier one: ./scripts/ctl.sh db upgrade
-- There is no foreign key from tasks to sessions: with batches and several nodes a task may arrive first.

CREATE DATABASE IF NOT EXISTS ai_terminal CHARACTER SET utf8mb4;
USE ai_terminal;

CREATE TABLE IF NOT EXISTS translation_sessions (
    session_id       VARCHAR(36)   NOT NULL,
    filename         VARCHAR(255)  NOT NULL,
    file_path        VARCHAR(512)  NOT NULL,
    status           VARCHAR(32)   NOT NULL,
    llm_provider     VARCHAR(50)   NOT NULL,
    game_info        JSON          NULL,
    metadata         JSON          NULL,
    total_tasks      INT           NOT NULL DEFAULT 0,
    completed_tasks  INT           NOT NULL DEFAULT 0,
    failed_tasks     INT           NOT NULL DEFAULT 0,
    processing_tasks INT           NOT NULL DEFAULT 0,
    extra            JSON          NULL,
    updated_at       DATETIME(6)   NOT NULL,
    created_at       DATETIME(6)   NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (session_id),
    KEY ix_sessions_status (status, updated_at, session_id),
    KEY ix_sessions_updated_at (updated_at, session_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */
    COMMENT='persistence-service tables, version 2';

CREATE TABLE IF NOT EXISTS translation_tasks (
    session_id    VARCHAR(36)   NOT NULL,
    task_id       VARCHAR(64)   NOT NULL,
    batch_id      VARCHAR(64)   NOT NULL,
    sheet_name    VARCHAR(255)  NOT NULL,
    column_name   VARCHAR(255)  NOT NULL,
    row_index     INT           NOT NULL DEFAULT 0,
    source_text   MEDIUMTEXT    NOT NULL,
    status        VARCHAR(32)   NOT NULL,
    target_text   MEDIUMTEXT    NULL,
    context       MEDIUMTEXT    NULL,
    error_message MEDIUMTEXT    NULL,
    confidence    DECIMAL(5,4)  NULL,
    retry_count   INT           NOT NULL DEFAULT 0,
    start_time    DATETIME(6)   NULL,
    end_time      DATETIME(6)   NULL,
    duration_ms   INT           NULL,
    metadata      JSON          NULL,
    extra         JSON          NULL,
    updated_at    DATETIME(6)   NOT NULL,
    created_at    DATETIME(6)   NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (session_id, task_id),
    KEY ix_tasks_session_status (session_id, status),
    KEY ix_tasks_batch (session_id, batch_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */
    COMMENT='persistence-service tables, version 2';
