//! `key create|list|revoke`.

use std::time::Duration;

use clap::Subcommand;
use flotilla_api::{KeyId, KeyInfo, KeyList, KeyRequest};
use flotilla_client::Client;
use flotilla_types::Role;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, table, time},
};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create a client key; it is shown only once
    Create {
        /// What its holder may do: reader (read records), writer (read and write records), operator (run the
        /// cluster, without its records) or admin (everything)
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// A collection whose records it opens; repeat it for more [default: all]
        #[arg(long, value_name = "NAME")]
        collection: Vec<String>,
        /// How long it is valid, such as 90days [default: without end]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// List the client keys, without their secrets
    List,
    /// Revoke a key; every node refuses it within two seconds
    Revoke {
        /// Id of the key, as shown by `key list`
        id: KeyId,
    },
}

pub(super) async fn run(command: KeyCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { role, collection, ttl } => {
            let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis())).transpose();
            let ttl_ms = ttl_ms.map_err(|_| Failure::usage("--ttl must be shorter than 500 million years"))?;
            let reply = client.create_key(&KeyRequest { role, collections: collection, ttl_ms }).await?;
            // Only the key, so that a script can use the output directly.
            output.show(&reply, |reply| reply.key.clone())
        }
        KeyCommand::List => {
            let keys = client.keys().await?;
            output.show(&KeyList { keys }, |list| rows(&list.keys))
        }
        KeyCommand::Revoke { id } => {
            client.revoke_key(id).await?;
            output.show(&json!({ "revoked": id }), |_| format!("revoked {id}"))
        }
    }
}

fn rows(keys: &[KeyInfo]) -> String {
    let rows = keys.iter().map(|key| {
        let collections = if key.collections.is_empty() { "all".to_owned() } else { key.collections.join(",") };
        let expires = key.expires_at_ms.map_or_else(|| "never".to_owned(), time);
        [key.id.to_string(), key.role.to_string(), collections, time(key.created_at_ms), expires]
    });
    table(["ID", "ROLE", "COLLECTIONS", "CREATED", "EXPIRES"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_with_its_role_collections_and_expiry() {
        let key = KeyInfo {
            id: KeyId(0xab),
            role: Role::Writer,
            collections: vec!["a".to_owned(), "b".to_owned()],
            created_at_ms: 0,
            expires_at_ms: Some(1_000),
        };
        let other = KeyInfo { collections: vec![], expires_at_ms: None, ..key.clone() };
        let text = rows(&[key, other]);
        for part in ["00000000000000ab", "writer", "a,b", "1970-01-01T00:00:01Z", "all", "never"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
