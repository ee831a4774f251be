-- The CAs of agents. Keys are sealed; what seals them is not in the store.
CREATE TABLE agent_cas (
    id              TEXT    PRIMARY KEY,
    -- staged, signing or trusted.
    state           TEXT    NOT NULL,
    certificate     BLOB    NOT NULL,
    sealed_key      BLOB    NOT NULL,
    created_unix_ms INTEGER NOT NULL,
    -- End of the last certificate of an agent that it signed.
    last_unix_s     INTEGER NOT NULL
) STRICT;

-- Bootstrap tokens, each good for one certificate. By their SHA-256: the text is never stored.
CREATE TABLE enrol_tokens (
    digest            BLOB    PRIMARY KEY CHECK (length(digest) = 32),
    cluster           TEXT    NOT NULL,
    created_unix_ms   INTEGER NOT NULL,
    not_after_unix_ms INTEGER NOT NULL
) STRICT;
