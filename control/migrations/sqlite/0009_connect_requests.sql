-- Agents that ask for a token, until an administrator decides. The secret by its SHA-256; the
-- token is made at the answer that delivers it and is in here never.
CREATE TABLE connect_requests (
    id              TEXT    PRIMARY KEY,
    secret          BLOB    NOT NULL CHECK (length(secret) = 32),
    code            TEXT    NOT NULL,
    -- What the agent says of itself: nobody vouches for it.
    cluster_wish    TEXT    NOT NULL,
    version         TEXT    NOT NULL,
    host            TEXT    NOT NULL,
    address         TEXT    NOT NULL,
    created_unix_ms INTEGER NOT NULL,
    expires_unix_ms INTEGER NOT NULL,
    -- pending, approved, denied, consumed.
    stage           TEXT    NOT NULL,
    cluster_id      TEXT,
    decided_by      TEXT,
    token_id        TEXT
) STRICT;
