-- One row: a renewed licence for the next start, and how long the license
-- server has not been reached, on a high-water mark of the clock.
CREATE TABLE license (
    only_row             INTEGER PRIMARY KEY CHECK (only_row = 1),
    -- NULL = none was renewed.
    token                TEXT,
    seen_unix_ms         INTEGER NOT NULL,
    without_ms           INTEGER NOT NULL,
    last_success_unix_ms INTEGER
) STRICT;
