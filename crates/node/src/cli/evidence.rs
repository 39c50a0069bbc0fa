//! `evidence`: the records of replicas that this machine's node gave up because they differ from a majority.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, table, time},
};
use crate::evidence::{Evidence, KEPT_MS_MAX, Kept};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Data folder of the node, on this machine; the node may run
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Remove the file of this name, or all files with `all`
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let kept =
        Evidence::new(&arguments.data_dir).list().map_err(|error| Failure::io("cannot list evidence", &error))?;
    let Some(name) = &arguments.remove else { return show(&kept, output) };
    let removed: Vec<_> = kept.into_iter().filter(|file| name == "all" || file.name == *name).collect();
    if removed.is_empty() && name != "all" {
        return Err(Failure::not_found(format!("there is no evidence {name}")));
    }
    for file in &removed {
        fs::remove_file(&file.path).map_err(|error| Failure::io(format!("cannot remove {}", file.name), &error))?;
    }
    let names: Vec<_> = removed.into_iter().map(|file| file.name).collect();
    output.show(&json!({ "removed": names }), |_| format!("removed {} files", names.len()))
}

fn show(kept: &[Kept], output: Output) -> Result<(), Failure> {
    let files: Vec<_> = kept
        .iter()
        .map(|file| {
            let until_ms = file.at_ms + KEPT_MS_MAX;
            json!({ "name": file.name, "path": file.path, "bytes": file.bytes, "at_ms": file.at_ms, "until_ms": until_ms })
        })
        .collect();
    output.show(&json!({ "files": files }), |_| {
        let rows = kept.iter().map(|file| {
            [file.path.display().to_string(), file.bytes.to_string(), time(file.at_ms), time(file.at_ms + KEPT_MS_MAX)]
        });
        table(["FILE", "BYTES", "KEPT", "UNTIL"], rows)
    })
}
