//! `collection create|show|set|list|drop`.

use clap::{Args, Subcommand, ValueEnum};
use flotilla_api::{ChangeCollection, Collection, CollectionList, CreateCollection, Sharding};
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
        #[command(flatten)]
        settings: SettingArguments,
    },
    /// Show a collection and its settings
    Show {
        /// Name of the collection
        name: String,
    },
    /// Change settings of a collection; large values that are stored already stay as they are
    #[command(arg_required_else_help = true)]
    Set {
        /// Name of the collection
        name: String,
        #[command(flatten)]
        settings: SettingArguments,
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

/// Settings of a collection.
#[derive(Debug, Args)]
pub(crate) struct SettingArguments {
    /// Store values of more bytes as objects, of which equal ones are stored and sent once: 1024 to 4194304 [default:
    /// 4096]
    #[arg(long, value_name = "BYTES")]
    objects_from: Option<u32>,
    /// Cut them into chunks of these lengths at least, on average and at most, such as 4KiB/16KiB/64KiB; or
    /// `default`, or `archive` for longer chunks
    #[arg(long, value_name = "LENGTHS")]
    chunk: Option<String>,
    /// Split a shard that has more bytes of keys and values, without what values refer to: 1024 to 1099511627776, or 0
    /// for never. Small shards move and recover in finer steps; each costs memory, and a batch must fit one [default:
    /// 67108864]
    #[arg(long, value_name = "BYTES")]
    split_bytes: Option<u64>,
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
        CollectionCommand::Create { name, sharding, buckets, shards, replicas, settings } => {
            let sharding = match sharding {
                ShardingArgument::Hash => Sharding::Hash,
                ShardingArgument::Range => Sharding::Range,
            };
            let SettingArguments { objects_from, chunk, split_bytes } = settings;
            let request =
                CreateCollection { name, sharding, buckets, shards, replicas, objects_from, chunk, split_bytes };
            let created = client.create_collection(&request).await?;
            output.show(&created, |collection| rows(std::slice::from_ref(collection)))
        }
        CollectionCommand::Show { name } => output.show(&client.collection(&name).await?, described),
        CollectionCommand::Set { name, settings } => {
            let SettingArguments { objects_from, chunk, split_bytes } = settings;
            let changed =
                client.change_collection(&name, &ChangeCollection { objects_from, chunk, split_bytes }).await?;
            output.show(&changed, described)
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

fn described(collection: &Collection) -> String {
    let values = match (collection.objects_from, &collection.chunk) {
        (Some(bytes), Some(chunk)) => format!("values of more than {bytes} bytes are cut into chunks of {chunk}\n"),
        _ => String::new(),
    };
    let splits = match collection.split_bytes {
        Some(0) => "shards are split by hand only\n".to_owned(),
        Some(bytes) => format!("shards of more than {bytes} bytes are split\n"),
        None => String::new(),
    };
    format!("{}\n{values}{splits}", rows(std::slice::from_ref(collection))).trim_end().to_owned()
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
