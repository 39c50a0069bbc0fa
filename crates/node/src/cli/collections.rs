//! `collection create|list|drop`.

use clap::{Subcommand, ValueEnum};
use flotilla_api::{Collection, CollectionList, CreateCollection, Sharding};
use flotilla_client::Client;
use serde_json::json;

use super::{
    confirm::Confirmation,
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum CollectionCommand {
    /// Create a collection
    Create {
        /// Name of the collection
        name: String,
        /// How keys are distributed over shards
        #[arg(long, value_enum, default_value_t)]
        sharding: ShardingArgument,
        /// Number of hash buckets, fixed for the collection's lifetime
        #[arg(long)]
        buckets: Option<u16>,
        /// Number of shards over which the buckets are distributed
        #[arg(long)]
        shards: Option<u16>,
        /// Number of replicas of each shard
        #[arg(long)]
        replicas: Option<u8>,
    },
    /// List all collections
    List,
    /// Remove a collection and all its records
    Drop {
        /// Name of the collection
        name: String,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

/// How keys are distributed over shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShardingArgument {
    /// By a hash of the key, or of its {tag}
    #[default]
    Hash,
    /// By ranges of keys
    Range,
}

pub(super) async fn run(command: CollectionCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        CollectionCommand::Create { name, sharding, buckets, shards, replicas } => {
            let sharding = match sharding {
                ShardingArgument::Hash => Sharding::Hash,
                ShardingArgument::Range => Sharding::Range,
            };
            let request = CreateCollection { name, sharding, buckets, shards, replicas };
            let created = client.create_collection(&request).await?;
            output.show(&created, |collection| rows(std::slice::from_ref(collection)))
        }
        CollectionCommand::List => {
            let collections = client.collections().await?;
            output.show(&CollectionList { collections }, |list| rows(&list.collections))
        }
        CollectionCommand::Drop { name, confirmation } => {
            let known = client.collections().await?.into_iter().any(|collection| collection.name == name);
            if !known {
                return Err(Failure::not_found(format!("there is no collection `{name}`")));
            }
            let plan = format!("Removes the collection `{name}` and all its records for good.");
            if !confirmation.ask(&plan)? {
                return Ok(());
            }
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
