//! What is set for which place: from the environment, and from a file that is looked at while the node runs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{COUNTER, ENGINE_PLACES, FILE, Place, UnknownPlace, VARIABLE};

/// Time between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Settings were not understood. Those before the first mistake are in force.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is no `place=action`.
    #[error("settings are of the form `place=action`, separated by `;`")]
    Form,
    /// Nobody comes by there.
    #[error(transparent)]
    Place(#[from] UnknownPlace),
    /// The crate `fail` does not understand the action.
    #[error("no such action")]
    Action,
    /// The file cannot be watched.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sets `place=action`, separated by `;` or lines, and nothing else: what is not named is off.
///
/// # Errors
/// See [`SettingsError`].
pub fn configure(text: &str) -> Result<(), SettingsError> {
    let mut wanted = Vec::new();
    for setting in text.split([';', '\n']).map(str::trim).filter(|setting| !setting.is_empty()) {
        let (place, action) = setting.split_once('=').ok_or(SettingsError::Form)?;
        let engine = ENGINE_PLACES.iter().find(|engine| **engine == place.trim());
        let place = engine.map_or_else(|| place.trim().parse().map(Place::name), |engine| Ok(*engine))?;
        wanted.push((place, action.trim()));
    }
    let all = Place::ALL.iter().map(|place| place.name()).chain(ENGINE_PLACES.iter().copied());
    for place in all.filter(|place| wanted.iter().all(|(named, _)| named != place)) {
        fail::remove(place);
    }
    wanted.into_iter().try_for_each(|(place, action)| fail::cfg(place, action).map_err(|_| SettingsError::Action))
}

/// Takes the settings of the environment and of the file [`FILE`] in `dir`, and follows the file from then on. While there is no file,
/// the environment counts.
///
/// # Errors
/// What is set is not understood, or no thread can be started.
pub fn watch(dir: &Path) -> Result<(), SettingsError> {
    let variable = env::var(VARIABLE).unwrap_or_default();
    let file = dir.join(FILE);
    let mut last = settings_of(&file, &variable);
    configure(&last)?;
    let follow = move || {
        loop {
            thread::sleep(LOOK_EVERY);
            let now = settings_of(&file, &variable);
            if now != last {
                // Whoever writes the file sees on stderr why nothing happens.
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

/// What is set for a place, if it is due. Does not return when the process is to end.
pub(crate) fn action(place: Place) -> Option<String> {
    metrics::counter!(COUNTER, "place" => place.name()).increment(1);
    let action = due(place)?;
    if action == "abort" {
        eprintln!("failpoints: aborting at {place}");
        std::process::abort();
    }
    Some(action)
}

fn due(place: Place) -> Option<String> {
    // Settings that name the engine's own places reach it through the same registry.
    fail::fail_point!(place.name(), |action: Option<String>| Some(action.unwrap_or_default()));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{io, number};

    /// One test, because settings belong to the process.
    #[test]
    fn settings_take_effect_where_they_are_named_and_nowhere_else() {
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
            assert!(begun.elapsed().as_secs() < 60, "the file is not looked at");
            thread::yield_now();
        }
    }
}
