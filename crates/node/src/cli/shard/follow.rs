//! Follows an operation of a shard to its end.

use std::time::{Duration, Instant};

use flotilla_api::OperationInfo;
use flotilla_client::Client;
use flotilla_types::OperationPhase;
use indicatif::ProgressBar;

use super::super::{
    failure::{Failure, is_passing},
    output::progress,
};

/// How often the operation is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long no node may answer meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Looks again until the operation has ended or is paused.
pub(super) async fn follow(client: &Client, mut operation: OperationInfo) -> Result<OperationInfo, Failure> {
    let bar = progress("{bar:30} {msg}", 1);
    let mut heard = Instant::now();
    while !operation.done && operation.phase != OperationPhase::Paused {
        show(&bar, &operation);
        tokio::time::sleep(LOOK_EVERY).await;
        match client.operation(&operation.id).await {
            Ok(now) => (operation, heard) = (now, Instant::now()),
            Err(error) if is_passing(&error) && heard.elapsed() < SILENCE_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    Ok(operation)
}

fn show(bar: &ProgressBar, operation: &OperationInfo) {
    if let (Some(objects), Some(total)) = (operation.progress.objects, operation.progress.objects_total) {
        bar.set_length(total);
        bar.set_position(objects);
    }
    bar.set_message(operation.state());
}
