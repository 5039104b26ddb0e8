"""Tables that are not ours, or not quite: of earlier versions, of other programs, altered by a DBA."""

from __future__ import annotations

VERSION_1 = (
    """CREATE TABLE translation_sessions (
    session_id VARCHAR(36) NOT NULL, filename VARCHAR(255) NOT NULL, file_path VARCHAR(512) NOT NULL,
    status VARCHAR(20) NOT NULL, llm_provider VARCHAR(50) NOT NULL, game_info JSON NULL, metadata JSON NULL,
    total_tasks INT NOT NULL DEFAULT 0, completed_tasks INT NOT NULL DEFAULT 0, failed_tasks INT NOT NULL DEFAULT 0,
    processing_tasks INT NOT NULL DEFAULT 0, updated_at DATETIME(6) NOT NULL,
    created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (session_id), KEY ix_sessions_status (status), KEY ix_sessions_updated_at (updated_at)
) DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */""",
    """CREATE TABLE translation_tasks (
    task_id VARCHAR(64) NOT NULL, batch_id VARCHAR(64) NOT NULL, session_id VARCHAR(36) NOT NULL,
    sheet_name VARCHAR(255) NOT NULL, column_name VARCHAR(255) NOT NULL, row_index INT NOT NULL,
    source_text MEDIUMTEXT NOT NULL, status VARCHAR(20) NOT NULL, target_text MEDIUMTEXT NULL, context MEDIUMTEXT NULL,
    error_message MEDIUMTEXT NULL, confidence DECIMAL(5,4) NULL, retry_count INT NOT NULL DEFAULT 0,
    start_time DATETIME(6) NULL, end_time DATETIME(6) NULL, duration_ms INT NULL, updated_at DATETIME(6) NOT NULL,
    created_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (task_id), KEY ix_tasks_session_status (session_id, status), KEY ix_tasks_batch (batch_id)
) DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */""",
)
FIRST_USER = (
    """CREATE TABLE translation_sessions (
    session_id VARCHAR(36) PRIMARY KEY, filename VARCHAR(255) NOT NULL, file_path VARCHAR(512), status VARCHAR(20),
    llm_provider VARCHAR(50), game_info JSON, metadata JSON, total_tasks INT DEFAULT 0, completed_tasks INT DEFAULT 0,
    failed_tasks INT DEFAULT 0, processing_tasks INT DEFAULT 0, created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP
) DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci""",
    """CREATE TABLE translation_tasks (
    task_id VARCHAR(64) PRIMARY KEY, batch_id VARCHAR(64), session_id VARCHAR(36), sheet_name VARCHAR(255),
    column_name VARCHAR(255), row_index INT, source_text TEXT NOT NULL, status ENUM('pending', 'completed'),
    target_text TEXT, context TEXT, error_message TEXT, confidence DECIMAL(3,2), retry_count INT DEFAULT 0,
    start_time TIMESTAMP NULL, end_time DATETIME, duration_ms INT, created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, reviewer VARCHAR(50) NOT NULL,
    UNIQUE KEY once (session_id, sheet_name, row_index), KEY idx_batch (batch_id),
    CONSTRAINT belongs FOREIGN KEY (session_id) REFERENCES translation_sessions (session_id) ON DELETE CASCADE
) DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci""",
)
FOREIGN = (
    "CREATE TABLE translation_sessions (id INT AUTO_INCREMENT PRIMARY KEY, session_id VARCHAR(36), name TEXT)",
    "CREATE TABLE translation_tasks (id INT AUTO_INCREMENT PRIMARY KEY, task_id VARCHAR(64), source TEXT)",
)

_TASKS = "ALTER TABLE translation_tasks "
_SESSIONS = "ALTER TABLE translation_sessions "
FAULTS = {
    "a missing column": (_TASKS + "DROP COLUMN confidence", "confidence"),
    "a column that is too short": (_TASKS + "MODIFY target_text VARCHAR(100)", "mediumtext"),
    "a coarser number": (_TASKS + "MODIFY confidence DECIMAL(3,2)", "decimal(5,4)"),
    "times cut to seconds": (_SESSIONS + "MODIFY updated_at DATETIME NOT NULL", "datetime(6)"),
    "a column that takes no NULL": (_TASKS + "MODIFY context MEDIUMTEXT NOT NULL", "does not take NULL"),
    "a column computed by the server": (
        _TASKS + "DROP COLUMN duration_ms, ADD COLUMN duration_ms INT AS (row_index + 1)",
        "is generated",
    ),
    "no time of creation by itself": (_TASKS + "MODIFY created_at DATETIME(6) NOT NULL", "has no default"),
    "no time of creation at all": (_TASKS + "MODIFY created_at DATETIME(6) NULL", "has no default"),
    "a text that must be JSON": (_TASKS + "MODIFY context JSON NULL", "is json, and must hold mediumtext"),
    "a time of creation that moves": (
        _TASKS + "MODIFY created_at DATETIME(6) NOT NULL DEFAULT NOW(6) ON UPDATE NOW(6)",
        "changes with every update",
    ),
    "a foreign column that must be given": (_TASKS + "ADD owner INT NOT NULL", "owner"),
    "keys that ignore case": (
        _TASKS + "CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        "utf8mb4_general_ci",
    ),
    "keys that ignore trailing spaces": (
        _SESSIONS + "MODIFY session_id VARCHAR(36) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
        "utf8mb4_bin",
    ),
    "characters of three bytes": (_SESSIONS + "CONVERT TO CHARACTER SET utf8mb3", "not every character"),
    "one text in another character set": (_TASKS + "MODIFY context MEDIUMTEXT CHARACTER SET latin1", "latin1"),
    "another engine": (_TASKS + "ENGINE=MyISAM", "MyISAM"),
    "the key of version 1": (_TASKS + "DROP PRIMARY KEY, ADD PRIMARY KEY (task_id)", "is (task_id), and must be"),
    "a key of beginnings": (
        _TASKS + "DROP PRIMARY KEY, ADD PRIMARY KEY (session_id, task_id(10))",
        "(session_id, task_id(10))",
    ),
    "no primary key": (_SESSIONS + "DROP PRIMARY KEY", "is missing"),
    "a second unique key": ("CREATE UNIQUE INDEX once ON translation_tasks (batch_id)", "once"),
    "a foreign key": (
        _TASKS + "ADD CONSTRAINT belongs FOREIGN KEY (session_id) REFERENCES translation_sessions (session_id)",
        "belongs",
    ),
    "a trigger that changes values": (
        "CREATE TRIGGER shout BEFORE INSERT ON translation_tasks FOR EACH ROW SET @a = 1, NEW.`Status` = 'x'",
        "trigger shout changes status",
    ),
}
"""By name: what breaks the tables of sql/schema.sql, and what then must be said."""
HARMLESS = (
    _TASKS + "DROP INDEX ix_tasks_batch, ADD INDEX other (source_text(10)), COMMENT=''",
    _TASKS + "MODIFY sheet_name VARCHAR(500) NULL, MODIFY column_name LONGTEXT NOT NULL, MODIFY row_index BIGINT NULL",
    _TASKS + "MODIFY batch_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL, ADD note INT",
    _TASKS + "ADD number BIGINT NOT NULL AUTO_INCREMENT UNIQUE, ADD twice INT AS (row_index * 2)",
    _SESSIONS + "MODIFY updated_at DATETIME(6) NOT NULL DEFAULT NOW(6) ON UPDATE NOW(6)",
    _TASKS + "CHANGE context Context MEDIUMTEXT NULL, CHANGE task_id TASK_ID VARCHAR(64) NOT NULL",
    "CREATE TRIGGER seen BEFORE UPDATE ON translation_tasks FOR EACH ROW SET @status = NEW.status",
)
