//! The recorded history: requests, responses and their times, saved as lines of JSON.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::Mutex,
    time::Instant,
};

use serde::Serialize;

/// One recorded operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordedOperation {
    /// The client.
    pub client: u64,
    /// Time of the invocation, in nanoseconds since the start of the load.
    pub call: u64,
    /// Time of the response, in nanoseconds since the start of the load; `None` while there is none.
    pub ret: Option<u64>,
    /// The request.
    pub request: Request,
    /// The response.
    pub response: Response,
}

/// A request of a client. Keys and values of this load are text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A strong read.
    Get {
        /// The key.
        key: String,
    },
    /// An unconditional write.
    Put {
        /// The key.
        key: String,
        /// The value, unique in the history.
        value: String,
    },
    /// A write on condition that the key is absent.
    PutIfAbsent {
        /// The key.
        key: String,
        /// The value, unique in the history.
        value: String,
    },
    /// A write on condition that the key has a value. The client sends the version with which it saw that
    /// value.
    PutIfEqual {
        /// The key.
        key: String,
        /// The expected value.
        expected: String,
        /// The value, unique in the history.
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
        /// The increment.
        delta: i64,
    },
    /// An atomic write of one value under several keys of one shard.
    Batch {
        /// The keys.
        keys: Vec<String>,
        /// The value, unique in the history.
        value: String,
    },
}

/// The response that a client saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// None yet, or the outcome is unknown.
    Unknown,
    /// It was not executed.
    Refused,
    /// The condition did not hold.
    ConditionFailed,
    /// It was executed.
    Done,
    /// It was executed; whether there was a record to delete.
    Existed(bool),
    /// The value that a read found.
    Value(Option<String>),
    /// The sum.
    Number(i64),
}

impl Response {
    /// Whether the operation completed: neither refused nor of unknown outcome.
    #[must_use]
    pub const fn is_completed(&self) -> bool {
        !matches!(self, Self::Unknown | Self::Refused)
    }
}

impl Request {
    /// The keys that it reads or writes.
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

/// Records a history as it happens.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    operations: Mutex<Vec<RecordedOperation>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { start: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    /// Records that a client is about to send a request. Returns the operation's index.
    pub fn invoke(&self, client: u64, request: Request) -> usize {
        let mut operations = self.operations.lock().expect("no panic");
        let call = self.now();
        operations.push(RecordedOperation { client, call, ret: None, request, response: Response::Unknown });
        operations.len() - 1
    }

    /// Records the response to the operation with this index.
    pub fn complete(&self, index: usize, response: Response) {
        let now = self.now();
        let mut operations = self.operations.lock().expect("no panic");
        operations[index].ret = Some(now);
        operations[index].response = response;
    }

    /// Nanoseconds since the start of the load.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// All operations so far.
    #[must_use]
    pub fn operations(&self) -> Vec<RecordedOperation> {
        self.operations.lock().expect("no panic").clone()
    }

    /// Number of operations, and how many of them completed.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let operations = self.operations.lock().expect("no panic");
        let completed = operations.iter().filter(|operation| operation.response.is_completed()).count();
        (operations.len(), completed)
    }

    /// Writes all operations to a file, one per line.
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
