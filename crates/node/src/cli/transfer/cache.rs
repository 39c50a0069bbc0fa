//! The folder with parts of values that were fetched before.

use std::path::PathBuf;

use clap::Args;
use flotilla_client::ValueCache;

use crate::cli::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct CacheArguments {
    /// Keep parts of large values in this folder, and fetch only those that it lacks. Several processes can share it
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Limit of the cache in MiB; beyond it, the parts that were not used for the longest time are removed
    #[arg(long, value_name = "MIB", default_value_t = 4_096, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    cache_mib: u64,
}

impl CacheArguments {
    /// The cache, if one was asked for.
    pub(crate) fn open(&self) -> Result<Option<ValueCache>, Failure> {
        let open = |path: &PathBuf| {
            ValueCache::open(path, self.cache_mib << 20).map_err(|error| Failure::io(path.display(), &error))
        };
        self.cache.as_ref().map(open).transpose()
    }
}
