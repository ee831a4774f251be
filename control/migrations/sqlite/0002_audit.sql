-- Who did what. A row of a change is written in the change's own transaction;
-- rows are pruned by age and size, oldest first.
CREATE TABLE audit (
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,
    time_unix_ms      INTEGER NOT NULL,
    request_id        TEXT    NOT NULL,
    -- Method and pattern of the route, or what else asked.
    route             TEXT    NOT NULL,
    transport         TEXT    NOT NULL,
    actor_sub         TEXT    NOT NULL,
    actor_email       TEXT    NOT NULL,
    -- A JSON list.
    actor_groups      TEXT    NOT NULL,
    verb              TEXT    NOT NULL,
    outcome           TEXT    NOT NULL,
    cluster           TEXT    NOT NULL,
    resource_group    TEXT    NOT NULL,
    resource_version  TEXT    NOT NULL,
    resource          TEXT    NOT NULL,
    namespace         TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    reason            TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_by_time ON audit (time_unix_ms);
CREATE INDEX audit_by_cluster ON audit (cluster, seq);
