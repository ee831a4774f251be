-- The CAs of agents. Keys are sealed; what seals them is not in the store.
CREATE TABLE agent_cas (
    id              TEXT    PRIMARY KEY,
    -- staged, signing or trusted.
    state           TEXT    NOT NULL,
    certificate     BYTEA   NOT NULL,
    sealed_key      BYTEA   NOT NULL,
    created_unix_ms BIGINT  NOT NULL,
    -- End of the last certificate of an agent that it signed.
    last_unix_s     BIGINT  NOT NULL
);

-- Bootstrap tokens, each good for one certificate. By their SHA-256: the text is never stored.
CREATE TABLE enrol_tokens (
    digest            BYTEA   PRIMARY KEY CHECK (length(digest) = 32),
    cluster           TEXT    NOT NULL,
    created_unix_ms   BIGINT  NOT NULL,
    not_after_unix_ms BIGINT  NOT NULL
);
