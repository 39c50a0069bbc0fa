//! `token create|list|revoke`.

use std::time::Duration;

use clap::Subcommand;
use flotilla_api::{TokenId, TokenInfo, TokenList, TokenRequest};
use flotilla_client::Client;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, table, time},
};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token for new nodes; it is shown only once
    Create {
        /// How long the token is valid
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1h")]
        ttl: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
    /// List the join tokens, without their secrets
    List,
    /// Revoke a token, so that no node can join with it
    Revoke {
        /// Id of the token, as shown by `token list`
        id: TokenId,
    },
}

pub(super) async fn run(command: TokenCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { ttl, uses } => {
            let ttl_ms = u64::try_from(ttl.as_millis())
                .map_err(|_| Failure::usage("--ttl must be shorter than 500 million years"))?;
            let reply = client.create_token(&TokenRequest { ttl_ms: Some(ttl_ms), uses: Some(uses) }).await?;
            // Only the token, so that a script can use the output directly.
            output.show(&reply, |reply| reply.token.clone())
        }
        TokenCommand::List => {
            let tokens = client.tokens().await?;
            output.show(&TokenList { tokens }, |list| rows(&list.tokens))
        }
        TokenCommand::Revoke { id } => {
            client.revoke_token(id).await?;
            output.show(&json!({ "revoked": id }), |_| format!("revoked {id}"))
        }
    }
}

fn rows(tokens: &[TokenInfo]) -> String {
    let rows = tokens.iter().map(|token| {
        [
            token.id.to_string(),
            time(token.created_at_ms),
            time(token.expires_at_ms),
            format!("{} of {}", token.uses_left, token.uses),
        ]
    });
    table(["ID", "CREATED", "EXPIRES", "USES LEFT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_with_its_remaining_uses_and_expiry() {
        let token = TokenInfo { id: TokenId(0xab), created_at_ms: 0, expires_at_ms: 1_000, uses_left: 1, uses: 3 };
        let text = rows(&[token, TokenInfo { expires_at_ms: u64::MAX, ..token }]);
        for part in ["00000000000000ab", "1970-01-01T00:00:01Z", "1 of 3", "never"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
