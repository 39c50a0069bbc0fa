//! `setting list|set`.

use clap::Subcommand;
use flotilla_api::{Setting, SettingList};
use flotilla_client::Client;

use super::{
    failure::Failure,
    output::{Output, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum SettingCommand {
    /// List all settings with their descriptions
    List,
    /// Change a setting
    Set {
        /// Name of the setting, as shown by `setting list`
        key: String,
        /// New value: a whole number
        value: u64,
    },
}

pub(super) async fn run(command: SettingCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        SettingCommand::List => {
            let settings = client.settings().await?;
            output.show(&SettingList { settings }, |list| rows(&list.settings))
        }
        SettingCommand::Set { key, value } => {
            let changed = client.put_setting(&key, value).await?;
            output.show(&changed, |setting| rows(std::slice::from_ref(setting)))
        }
    }
}

fn rows(settings: &[Setting]) -> String {
    let rows = settings.iter().map(|setting| {
        let Setting { key, value, default, description } = setting;
        [key.clone(), value.to_string(), default.to_string(), description.clone()]
    });
    table(["KEY", "VALUE", "DEFAULT", "DESCRIPTION"], rows)
}
