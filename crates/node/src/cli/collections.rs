//! `collection create|list|drop`.

use clap::{Subcommand, ValueEnum};
use flotilla_api::{Collection, CollectionList, CreateCollection, Sharding};
use flotilla_client::Client;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum CollectionCommand {
    /// Create a collection
    Create {
        /// Its name
        name: String,
        /// How keys are spread over shards
        #[arg(long, value_enum, default_value_t)]
        sharding: By,
        /// Hash buckets, fixed for the collection's life
        #[arg(long)]
        buckets: Option<u16>,
        /// Shards that the buckets are dealt out to
        #[arg(long)]
        shards: Option<u16>,
        /// Replicas wanted of each shard
        #[arg(long)]
        replicas: Option<u8>,
    },
    /// List all collections
    List,
    /// Remove a collection and all its records
    Drop {
        /// Its name
        name: String,
    },
}

/// How keys are spread over shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// By a hash of the key, or of its {tag}
    #[default]
    Hash,
    /// By the order of the keys
    Range,
}

pub(super) async fn run(command: CollectionCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        CollectionCommand::Create { name, sharding, buckets, shards, replicas } => {
            let sharding = match sharding {
                By::Hash => Sharding::Hash,
                By::Range => Sharding::Range,
            };
            let wanted = CreateCollection { name, sharding, buckets, shards, replicas };
            let created = client.create_collection(&wanted).await?;
            output.show(&created, |collection| rows(std::slice::from_ref(collection)))
        }
        CollectionCommand::List => {
            let collections = client.collections().await?;
            output.show(&CollectionList { collections }, |list| rows(&list.collections))
        }
        CollectionCommand::Drop { name } => {
            client.drop_collection(&name).await?;
            output.show(&json!({ "dropped": name }), |_| format!("dropped {name}"))
        }
    }
}

fn rows(collections: &[Collection]) -> String {
    let rows = collections.iter().map(|collection| {
        let sharding = match collection.sharding {
            Sharding::Hash => "hash",
            Sharding::Range => "range",
        };
        let Collection { id, name, buckets, replicas, .. } = collection;
        [id.to_string(), name.clone(), sharding.to_owned(), buckets.to_string(), replicas.to_string()]
    });
    table(["ID", "NAME", "SHARDING", "BUCKETS", "REPLICAS"], rows)
}
