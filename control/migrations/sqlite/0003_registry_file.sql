-- Whether the registry file made the cluster: then it goes when the file lists it no more.
ALTER TABLE clusters ADD COLUMN from_file INTEGER NOT NULL DEFAULT 0;
