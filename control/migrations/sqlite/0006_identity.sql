-- What machines show to the API. By its SHA-256: the text is never stored.
CREATE TABLE api_tokens (
    id                TEXT    PRIMARY KEY,
    digest            BLOB    NOT NULL UNIQUE CHECK (length(digest) = 32),
    name              TEXT    NOT NULL,
    -- A JSON list.
    scopes            TEXT    NOT NULL,
    created_unix_ms   INTEGER NOT NULL,
    not_after_unix_ms INTEGER NOT NULL
) STRICT;

-- Sessions of a subject below its epoch are dead. No session itself is stored.
CREATE TABLE session_epochs (
    subject TEXT    PRIMARY KEY,
    epoch   INTEGER NOT NULL
) STRICT;
