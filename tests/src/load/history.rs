//! What clients asked and were told, with times, as lines of JSON.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::Mutex,
    time::Instant,
};

use serde::Serialize;

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Who asked.
    pub client: u64,
    /// When, in nanoseconds from the beginning of the load.
    pub call: u64,
    /// When there was an answer; none yet when absent.
    pub ret: Option<u64>,
    /// What was asked.
    pub ask: Ask,
    /// What was told.
    pub told: Told,
}

/// What a client asks. Keys and values of this load are text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// A strong read.
    Get {
        /// The key.
        key: String,
    },
    /// A write.
    Put {
        /// The key.
        key: String,
        /// The value, which nobody else ever writes.
        value: String,
    },
    /// A write if nothing is there.
    PutIfAbsent {
        /// The key.
        key: String,
        /// The value, which nobody else ever writes.
        value: String,
    },
    /// A write if this is there. The client goes by the version with which it saw the value.
    PutIfEqual {
        /// The key.
        key: String,
        /// What must be there.
        expected: String,
        /// The value, which nobody else ever writes.
        value: String,
    },
    /// A deletion.
    Delete {
        /// The key.
        key: String,
    },
    /// An increment.
    Add {
        /// The key.
        key: String,
        /// By so much.
        delta: i64,
    },
    /// The same value under several keys of one shard, at one moment.
    Batch {
        /// The keys.
        keys: Vec<String>,
        /// The value, which nobody else ever writes.
        value: String,
    },
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Nothing, or nothing certain.
    Unknown,
    /// It was not executed.
    Refused,
    /// The condition did not hold.
    ConditionFailed,
    /// It was executed.
    Done,
    /// It was executed, and there was something to delete, or not.
    Existed(bool),
    /// What a read found.
    Value(Option<String>),
    /// The sum.
    Number(i64),
}

impl Ask {
    /// The keys that it names.
    #[must_use]
    pub fn keys(&self) -> Vec<&str> {
        match self {
            Self::Batch { keys, .. } => keys.iter().map(String::as_str).collect(),
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::PutIfAbsent { key, .. }
            | Self::PutIfEqual { key, .. }
            | Self::Delete { key }
            | Self::Add { key, .. } => vec![key],
        }
    }
}

/// Writes a history down while it happens.
#[derive(Debug)]
pub struct Recorder {
    begun: Instant,
    operations: Mutex<Vec<Recorded>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { begun: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    /// A client is about to ask. Returns the operation's place.
    pub fn call(&self, client: u64, ask: Ask) -> usize {
        let mut operations = self.operations.lock().expect("no panic");
        let call = self.now();
        operations.push(Recorded { client, call, ret: None, ask, told: Told::Unknown });
        operations.len() - 1
    }

    /// A client was told something.
    pub fn told(&self, at: usize, told: Told) {
        let now = self.now();
        let mut operations = self.operations.lock().expect("no panic");
        operations[at].ret = Some(now);
        operations[at].told = told;
    }

    /// Nanoseconds from the beginning.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Everything so far.
    #[must_use]
    pub fn operations(&self) -> Vec<Recorded> {
        self.operations.lock().expect("no panic").clone()
    }

    /// How many operations there are, and how many of them had a certain answer.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let operations = self.operations.lock().expect("no panic");
        let certain = operations.iter().filter(|one| !matches!(one.told, Told::Unknown | Told::Refused)).count();
        (operations.len(), certain)
    }

    /// Writes everything into a file, one operation to a line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for operation in self.operations() {
            serde_json::to_writer(&mut file, &operation)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}
