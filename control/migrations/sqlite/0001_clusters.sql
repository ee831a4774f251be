-- One row: which hub this is and how far its history goes.
CREATE TABLE hub (
    only_row        INTEGER PRIMARY KEY CHECK (only_row = 1),
    hub_id          TEXT    NOT NULL,
    generation      INTEGER NOT NULL,
    -- The last version that opened the store; named when an older one refuses it.
    written_by      TEXT    NOT NULL,
    created_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE clusters (
    id                     TEXT    PRIMARY KEY,
    -- What an operator may change, as JSON.
    spec                   TEXT    NOT NULL,
    epoch_floor            INTEGER NOT NULL,
    created_unix_ms        INTEGER NOT NULL,
    updated_unix_ms        INTEGER NOT NULL,
    last_connected_unix_ms INTEGER
) STRICT;

-- Tokens by their SHA-256; the text is never stored.
CREATE TABLE tokens (
    digest            BLOB    PRIMARY KEY CHECK (length(digest) = 32),
    id                TEXT    NOT NULL,
    cluster_id        TEXT    NOT NULL REFERENCES clusters (id) ON DELETE CASCADE,
    created_unix_ms   INTEGER NOT NULL,
    not_after_unix_ms INTEGER,
    last_used_unix_ms INTEGER,
    -- Set while the token waits to be delivered through the tunnel: the
    -- overlap that starts once an agent has acknowledged it.
    overlap_ms        INTEGER,
    UNIQUE (cluster_id, id)
) STRICT;
