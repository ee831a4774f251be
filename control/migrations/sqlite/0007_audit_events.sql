-- Requests that data planes audit. A record may come again after a crash of either side: each
-- is kept once, by its event and its phase (0 attempted, 1 result, 2 close). Rows of what
-- control decided have none.
ALTER TABLE audit ADD COLUMN event_id TEXT;
ALTER TABLE audit ADD COLUMN phase INTEGER;
-- What the client was answered, bytes of the bodies, and how long it took.
ALTER TABLE audit ADD COLUMN status INTEGER;
ALTER TABLE audit ADD COLUMN bytes_to_service INTEGER;
ALTER TABLE audit ADD COLUMN bytes_to_client INTEGER;
ALTER TABLE audit ADD COLUMN duration_ms INTEGER;

CREATE UNIQUE INDEX audit_by_event ON audit (event_id, phase);
