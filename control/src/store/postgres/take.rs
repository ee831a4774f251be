//! What a database takes of a SQLite store that is copied into it.

use super::{
    AgentCa, ApiToken, Loaded, Postgres, Recorded, RowError, db, enrol, identity, license, rows,
};

impl Postgres {
    /// Whether a copy may go there.
    pub(in crate::store) async fn is_empty(&self) -> rows::Result<()> {
        let mut connection = self.pool.acquire().await?;
        free(&mut connection).await
    }

    /// Takes API tokens and epochs of sessions, before [`Postgres::take`].
    pub(in crate::store) async fn take_identity(
        &self,
        tokens: &[ApiToken],
        epochs: &[(String, i64)],
    ) -> rows::Result<()> {
        sqlx::query("DELETE FROM api_tokens")
            .execute(&self.pool)
            .await?;
        for token in tokens {
            identity::add_token(&self.pool, token, u64::MAX, None).await?;
        }
        for (subject, epoch) in epochs {
            sqlx::query(
                "INSERT INTO session_epochs (subject, epoch) VALUES ($1, $2)
                 ON CONFLICT (subject) DO UPDATE SET epoch = excluded.epoch",
            )
            .bind(subject)
            .bind(epoch)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }

    /// Takes CAs of agents, before [`Postgres::take`]. Bootstrap tokens stay behind: they live
    /// for minutes.
    pub(in crate::store) async fn take_agent_cas(&self, cas: &[AgentCa]) -> rows::Result<()> {
        let mut connection = self.pool.acquire().await?;
        for ca in cas {
            enrol::put_ca(&mut connection, ca).await?;
        }
        Ok(())
    }

    /// Takes what a SQLite store held; the database must hold nothing yet.
    pub(in crate::store) async fn take(&self, loaded: &Loaded) -> rows::Result<()> {
        let mut transaction = self.pool.begin().await?;
        free(&mut transaction).await?;
        sqlx::query("UPDATE hub SET hub_id = $1, generation = $2")
            .bind(&loaded.hub_id)
            .bind(rows::signed(loaded.generation.0)?)
            .execute(&mut *transaction)
            .await?;
        for cluster in &loaded.clusters {
            rows::put(&mut transaction, cluster).await?;
            let last = cluster
                .last_connected_unix_ms
                .map(rows::signed)
                .transpose()?;
            sqlx::query("UPDATE clusters SET last_connected_unix_ms = $1 WHERE id = $2")
                .bind(last)
                .bind(cluster.id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        license::save(&self.pool, &loaded.license, None).await
    }

    /// Takes rows of the audit log with their numbers; those that it has stay as they are.
    pub(in crate::store) async fn take_audit(&self, rows: &[Recorded]) -> rows::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for row in rows {
            audit_row(&mut transaction, row).await?;
        }
        sqlx::query(
            "SELECT setval(pg_get_serial_sequence('audit', 'seq'),
                           greatest((SELECT max(seq) FROM audit), 1))",
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// A hub that has decided anything is not overwritten.
async fn free(connection: &mut db::Connection) -> rows::Result<()> {
    let (generation, clusters): (i64, i64) =
        sqlx::query_as("SELECT generation, (SELECT count(*) FROM clusters) FROM hub FOR UPDATE")
            .fetch_one(connection)
            .await?;
    if (generation, clusters) == (1, 0) {
        return Ok(());
    }
    let held = format!("generation {generation}, {clusters} clusters");
    Err(RowError::Taken(held))
}

async fn audit_row(connection: &mut db::Connection, row: &Recorded) -> rows::Result<()> {
    sqlx::query(
        "INSERT INTO audit (seq, time_unix_ms, request_id, route, transport, actor_sub,
             actor_email, actor_groups, verb, outcome, cluster, resource_group, resource_version,
             resource, namespace, name, reason, event_id, phase, status, bytes_to_service,
             bytes_to_client, duration_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
             $18, $19, $20, $21, $22, $23)
         ON CONFLICT (seq) DO NOTHING",
    )
    .bind(row.seq)
    .bind(row.time_unix_ms)
    .bind(&row.request_id)
    .bind(&row.route)
    .bind(&row.transport)
    .bind(&row.actor_sub)
    .bind(&row.actor_email)
    .bind(&row.actor_groups)
    .bind(&row.verb)
    .bind(&row.outcome)
    .bind(&row.cluster)
    .bind(&row.resource_group)
    .bind(&row.resource_version)
    .bind(&row.resource)
    .bind(&row.namespace)
    .bind(&row.name)
    .bind(&row.reason)
    .bind(&row.event_id)
    .bind(row.phase)
    .bind(row.status)
    .bind(row.bytes_to_service)
    .bind(row.bytes_to_client)
    .bind(row.duration_ms)
    .execute(connection)
    .await?;
    Ok(())
}
