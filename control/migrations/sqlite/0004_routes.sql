-- Ways to services beside HTTP. That an address or a server name is used once
-- is decided over all clusters before anything is written: a change may move
-- one from cluster to cluster, in any order of its steps.
CREATE TABLE routes (
    cluster_id      TEXT    NOT NULL REFERENCES clusters (id) ON DELETE CASCADE,
    id              TEXT    NOT NULL,
    service         TEXT    NOT NULL,
    tcp_addr        TEXT,
    sni             TEXT,
    -- Where the server name is served; NULL = the public listener.
    sealed_addr     TEXT,
    created_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (cluster_id, id),
    CHECK ((tcp_addr IS NULL) <> (sni IS NULL)),
    CHECK (sealed_addr IS NULL OR sni IS NOT NULL)
) STRICT;

-- What a person's token reaches in a cluster; a token of several clusters has
-- a row in each. By its SHA-256: the text is never stored.
CREATE TABLE personal_tokens (
    cluster_id        TEXT    NOT NULL REFERENCES clusters (id) ON DELETE CASCADE,
    id                TEXT    NOT NULL,
    digest            BLOB    NOT NULL CHECK (length(digest) = 32),
    principal         TEXT    NOT NULL,
    -- A JSON list; "*" is every service.
    services          TEXT    NOT NULL,
    created_unix_ms   INTEGER NOT NULL,
    not_after_unix_ms INTEGER,
    PRIMARY KEY (cluster_id, id)
) STRICT;
