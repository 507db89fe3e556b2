//! Connections to the copy's server, over its Unix socket. Answers come as text, so no type of the copy is asked for anything.

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{cluster::Cluster, meaning::ServerError};

/// For sessions, over what roles and databases set for themselves.
const OPTIONS: [(&str, &str); 15] = [
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("dynamic_library_path", "$libdir"),
    ("statement_timeout", "0"),
    // Nobody else is there who could hold one for long.
    ("lock_timeout", "60s"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read\\ committed"),
    ("search_path", "pg_catalog"),
    ("role", "none"),
    ("lc_messages", "C"),
    ("zero_damaged_pages", "off"),
    ("ignore_checksum_failure", "off"),
    ("maintenance_work_mem", "128MB"),
];

/// In a database without an encoding, names have the bytes that the application gave them: nothing is converted, and no name is
/// refused because it is not UTF-8. The server says its encoding by itself, and no operator of the copy is asked for it.
const WITHOUT_ENCODING: &str = "SQL_ASCII";

/// What `PGOPTIONS` holds for every session.
pub(super) fn options(major: u32) -> String {
    let mut options: Vec<_> = OPTIONS.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
    if major >= 17 {
        options.push("-c event_triggers=off".to_owned());
        options.push("-c transaction_timeout=0".to_owned());
    }
    options.join(" ")
}

/// What stands for what is no UTF-8.
pub(super) const NOT_TEXT: &str = "(a name that is not UTF-8)";

/// A row: each column as text, or nothing for NULL.
pub(super) type Row = Vec<Option<String>>;

/// A connection to one database.
pub(super) struct Session {
    client: Client,
    /// Drives the connection; it ends when the client is dropped.
    _driver: tokio::task::JoinHandle<()>,
}

impl Session {
    pub(super) async fn connect(cluster: &Cluster, role: &str, database: &str) -> Result<Self, ServerError> {
        let mut config = Config::new();
        config.host_path(cluster.socket_folder()).port(5432).user(role).dbname(database);
        config.application_name("assay").options(options(cluster.major));
        let (client, connection) = config.connect(NoTls).await.map_err(|error| ServerError::of(&error))?;
        let is_without_encoding = connection.parameter("server_encoding") == Some(WITHOUT_ENCODING);
        let driver = tokio::spawn(async move {
            // The calls that wait for the connection say that it broke.
            drop(connection.await);
        });
        let session = Self { client, _driver: driver };
        if is_without_encoding {
            session.run(&format!("SET client_encoding TO '{WITHOUT_ENCODING}'")).await?;
        }
        Ok(session)
    }

    /// The rows of the last query in `sql` that has rows.
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<Row>, ServerError> {
        let messages = self.client.simple_query(sql).await.map_err(|error| ServerError::of(&error))?;
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => {
                    // A name that is no UTF-8 is shown as that; nothing is looked up by names.
                    let column = |at| row.try_get(at).unwrap_or(Some(NOT_TEXT));
                    rows.push((0..row.len()).map(|at| column(at).map(str::to_owned)).collect());
                }
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                _ => {}
            }
        }
        Ok(rows)
    }

    pub(super) async fn run(&self, sql: &str) -> Result<(), ServerError> {
        self.rows(sql).await.map(drop)
    }
}

/// A column as text; empty for NULL.
pub(super) fn text(row: &Row, at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

/// A column as a number; 0 when it is none.
pub(super) fn number(row: &Row, at: usize) -> u32 {
    text(row, at).parse().unwrap_or_default()
}

/// A column as a truth value.
pub(super) fn truth(row: &Row, at: usize) -> bool {
    text(row, at) == "t"
}

/// A string constant of SQL, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let escaped = text.replace('\\', r"\\").replace('\'', "''");
    format!("E'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_hold_any_text() {
        assert_eq!(literal(r"it's a \ here"), r"E'it''s a \\ here'");
    }

    #[test]
    fn event_triggers_are_off_from_the_version_that_can() {
        assert!(options(17).contains("event_triggers=off") && !options(16).contains("event_triggers"));
    }
}
