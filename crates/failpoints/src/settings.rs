//! The settings of places: from the environment, and from a file that is polled while the node runs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{COUNTER, ENGINE_PLACES, FILE, Place, UnknownPlace, VARIABLE};

/// The interval at which the file is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Settings could not be read. A malformed setting or an unknown place changes nothing; at an unknown action
/// the settings before it are in force.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A setting is not of the form `place=action`.
    #[error("settings are of the form `place=action`, separated by `;`")]
    Form,
    /// There is no such place.
    #[error(transparent)]
    Place(#[from] UnknownPlace),
    /// The crate `fail` does not understand the action.
    #[error("there is no such action")]
    Action,
    /// The thread that polls the file cannot be started.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Applies settings `place=action`, separated by `;` or line breaks. Places that are not named are switched
/// off.
///
/// # Errors
/// See [`SettingsError`].
pub fn configure(text: &str) -> Result<(), SettingsError> {
    let mut actions = Vec::new();
    for setting in text.split([';', '\n']).map(str::trim).filter(|setting| !setting.is_empty()) {
        let (place, action) = setting.split_once('=').ok_or(SettingsError::Form)?;
        let place = match ENGINE_PLACES.iter().find(|engine| **engine == place.trim()) {
            Some(engine) => *engine,
            None => place.trim().parse::<Place>()?.name(),
        };
        actions.push((place, action.trim()));
    }
    let all = Place::ALL.iter().map(|place| place.name()).chain(ENGINE_PLACES.iter().copied());
    for place in all.filter(|place| actions.iter().all(|(named, _)| named != place)) {
        fail::remove(place);
    }
    actions.into_iter().try_for_each(|(place, action)| fail::cfg(place, action).map_err(|_| SettingsError::Action))
}

/// Applies the settings in the file [`FILE`] in `dir`, or those of the environment while there is no file,
/// and polls the file from then on.
///
/// # Errors
/// The settings are not valid, or no thread can be started.
pub fn watch(dir: &Path) -> Result<(), SettingsError> {
    let variable = env::var(VARIABLE).unwrap_or_default();
    let file = dir.join(FILE);
    let mut last = settings_of(&file, &variable);
    configure(&last)?;
    let follow = move || {
        loop {
            thread::sleep(POLL_INTERVAL);
            let now = settings_of(&file, &variable);
            if now != last {
                // The author of the file finds the mistake on stderr.
                if let Err(error) = configure(&now) {
                    eprintln!("failpoints: {error}: {now}");
                }
                last = now;
            }
        }
    };
    thread::Builder::new().name("failpoints".to_owned()).spawn(follow)?;
    Ok(())
}

fn settings_of(file: &PathBuf, variable: &str) -> String {
    fs::read_to_string(file).unwrap_or_else(|_| variable.to_owned())
}

/// Counts the place and returns its action if one triggers now. Aborts the process if the action says so.
pub(crate) fn action(place: Place) -> Option<String> {
    metrics::counter!(COUNTER, "place" => place.name()).increment(1);
    let action = triggered(place)?;
    if action == "abort" {
        eprintln!("failpoints: aborting at {place}");
        std::process::abort();
    }
    Some(action)
}

fn triggered(place: Place) -> Option<String> {
    fail::fail_point!(place.name(), |action: Option<String>| Some(action.unwrap_or_default()));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{io, number};

    /// One test, because the settings are global to the process.
    #[test]
    fn settings_affect_only_the_named_places() {
        assert!(io(Place::WalBeforeWrite).is_ok());
        configure("wal::before_write=return(error); clock::wall = return(-700)").expect("settings");
        assert_eq!(io(Place::WalBeforeWrite).expect_err("an error").to_string(), "injected at wal::before_write");
        assert_eq!(number(Place::ClockWall), Some(-700));
        assert!(io(Place::WalWritten).is_ok());

        configure("objects::before_append=1*off->return(enospc)").expect("settings");
        assert!(io(Place::WalBeforeWrite).is_ok(), "no longer named");
        assert!(io(Place::ObjectsBeforeAppend).is_ok(), "only the second time");
        let full = io(Place::ObjectsBeforeAppend).expect_err("an error");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

        assert!(matches!(configure("wal::before_write"), Err(SettingsError::Form)));
        assert!(matches!(configure("wal::nowhere=off"), Err(SettingsError::Place(_))));
        assert!(matches!(configure("wal::before_write=explode"), Err(SettingsError::Action)));

        let dir = tempfile::tempdir().expect("a temporary folder");
        watch(dir.path()).expect("a thread");
        assert!(number(Place::ClockWall).is_none());
        std::fs::write(dir.path().join(FILE), "clock::wall=return(5)").expect("a writable folder");
        let begun = std::time::Instant::now();
        while number(Place::ClockWall) != Some(5) {
            assert!(begun.elapsed().as_secs() < 60, "the file is not polled");
            thread::yield_now();
        }
    }
}
