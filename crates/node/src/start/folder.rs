//! The data folder: the node's identity, its incarnation, and the metadata it last saw.
//!
//! `identity.json` (certificates and key), `authority.json` and `authority-next.json` (only on nodes of the
//! metadata group), `incarnation`, `joining.key` (until a join is answered), `seeds.json` (peers from the
//! join), `founding` (until the cluster is founded), `left` (once the node has left the cluster), `admin.key`
//! (the first admin key, on the node that founded the cluster), `ca.pem` (the authority's certificate, for
//! clients), `client-ports.json` (certificate and key of the client ports), `audit.log`, `metadata` (a
//! cache), and the folders `log` and `state`. Every file is replaced as a whole and durably; a crash leaves
//! the old or the new content. A lock makes the folder exclusive to one process.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use flotilla_failpoints::{Place, io as failpoint, reached};
use flotilla_identity::{ClientKey, ClusterAuthority, IdentityPem, NodeIdentity, NodeKey};
use flotilla_meta::{CodecError, MetaState};
use flotilla_storage::{ReplaceStep, replace_file, sync_dir};
use flotilla_types::{ClusterVersion, HostPort, Incarnation, NodeId, VersionRange};
use serde::{Deserialize, Serialize};

use super::{client_tls::ClientCertificate, places::Location};

/// Incarnations start from the seconds since 2026, so that a node restored from a copy of its folder does not
/// reuse one.
const EPOCH_UNIX_SECONDS: u64 = 1_767_225_600;

/// Largest incarnation, reached in 2060. It is the prefix of the log's sequences, which have no room for a
/// larger one.
const INCARNATION_MAX: u64 = (1 << 30) - 2;

/// The mode of the folder: only the owner may read keys and records.
const FOLDER_MODE: u32 = 0o700;

/// The file that says that the node has left its cluster.
const LEFT_FILE: &str = "left";

/// The file with the node's identity.
const IDENTITY_FILE: &str = "identity.json";

/// The file with the first admin key.
const ADMIN_KEY_FILE: &str = "admin.key";

/// The file with the authority's certificate.
const CA_FILE: &str = "ca.pem";

/// Refuses a cluster version that this binary does not support: it would misread or stop at what others
/// write.
pub(crate) fn check_cluster_version(in_force: ClusterVersion) -> anyhow::Result<()> {
    let supported = VersionRange::supported();
    if supported.supports(in_force) {
        return Ok(());
    }
    bail!(
        "the cluster is at version {in_force} and this binary supports {supported}: \
         install a binary that supports version {in_force} and start the node again"
    )
}

/// The data folder, locked by this process.
pub(crate) struct Folder {
    dir: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct AuthorityFile {
    cert: String,
    key: String,
    #[serde(default)]
    since: u64,
}

/// Which authority a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one in force.
    Current,
    /// The one that a rotation may put in force.
    Next,
}

impl Which {
    fn file(self) -> &'static str {
        match self {
            Self::Current => "authority.json",
            Self::Next => "authority-next.json",
        }
    }
}

/// An authority with its key.
pub(crate) struct HeldAuthority {
    pub(crate) authority: ClusterAuthority,
    /// The version of the metadata by which this node was given it.
    pub(crate) since: u64,
}

impl HeldAuthority {
    /// Encodes an authority for a file or another node.
    pub(crate) fn encode(authority: &ClusterAuthority, since: u64) -> Vec<u8> {
        let file = AuthorityFile { cert: authority.cert_pem(), key: authority.key_pem(), since };
        // Plain strings and a number: cannot fail.
        serde_json::to_vec_pretty(&file).unwrap_or_default()
    }

    /// Decodes an authority from a file or a peer.
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        let file: AuthorityFile = serde_json::from_slice(bytes).context("the authority does not parse")?;
        Ok(Self { authority: ClusterAuthority::from_pem(&file.cert, &file.key)?, since: file.since })
    }
}

impl Folder {
    /// Opens (or creates) the folder and locks it.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = File::create(dir.join("lock")).with_context(|| format!("cannot write to {}", dir.display()))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| anyhow::anyhow!("{} is in use by another process", dir.display()))?;
        let folder = Self { dir: dir.to_owned(), _lock: lock };
        folder.keep_private()?;
        Ok(folder)
    }

    /// Makes a folder private that somebody made for this node. The mode of a folder in use is its owner's
    /// business, who is told what others may do.
    fn keep_private(&self) -> anyhow::Result<()> {
        let describe = || format!("cannot set the mode of {}", self.dir.display());
        let mode = fs::metadata(&self.dir).with_context(describe)?.permissions().mode() & 0o777;
        if mode & !FOLDER_MODE == 0 {
            return Ok(());
        }
        if self.dir.join(IDENTITY_FILE).exists() {
            let dir = self.dir.display();
            tracing::warn!("others may open the data folder (mode {mode:03o}): chmod 700 {dir}");
            return Ok(());
        }
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(FOLDER_MODE)).with_context(describe)
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn identity(&self) -> anyhow::Result<Option<NodeIdentity>> {
        let Some(text) = self.read(IDENTITY_FILE)? else { return Ok(None) };
        let pem: IdentityPem = serde_json::from_slice(&text).context("identity.json does not parse")?;
        Ok(Some(NodeIdentity::from_pem(&pem).context("identity.json is not valid")?))
    }

    pub(crate) fn set_identity(&self, identity: &NodeIdentity) -> anyhow::Result<()> {
        Ok(self.write(IDENTITY_FILE, &serde_json::to_vec_pretty(&identity.to_pem())?)?)
    }

    pub(crate) fn authority(&self, which: Which) -> anyhow::Result<Option<HeldAuthority>> {
        self.read(which.file())?.map(|text| HeldAuthority::decode(&text)).transpose()
    }

    pub(crate) fn set_authority(&self, which: Which, held: &HeldAuthority) -> anyhow::Result<()> {
        Ok(self.write(which.file(), &HeldAuthority::encode(&held.authority, held.since))?)
    }

    pub(crate) fn remove_authority(&self, which: Which) -> io::Result<()> {
        self.remove(which.file())
    }

    /// The key for a join, created at the first call. A retried join must use the same key.
    pub(crate) fn joining_key(&self) -> anyhow::Result<NodeKey> {
        if let Some(pem) = self.read("joining.key")? {
            return Ok(NodeKey::from_pem(std::str::from_utf8(&pem)?)?);
        }
        let key = NodeKey::generate()?;
        self.write("joining.key", key.to_pem().as_bytes())?;
        Ok(key)
    }

    pub(crate) fn remove_joining_key(&self) -> io::Result<()> {
        self.remove("joining.key")
    }

    /// The peers to fetch metadata from while there is none.
    pub(crate) fn seeds(&self) -> anyhow::Result<Vec<(NodeId, HostPort)>> {
        let Some(text) = self.read("seeds.json")? else { return Ok(Vec::new()) };
        let seeds: Vec<(NodeId, Location)> = serde_json::from_slice(&text).context("seeds.json does not parse")?;
        Ok(seeds.into_iter().map(|(node, location)| (node, location.0)).collect())
    }

    pub(crate) fn set_seeds(&self, seeds: &[(NodeId, HostPort)]) -> anyhow::Result<()> {
        // Numbers, as earlier versions read them.
        let seeds: Vec<_> = seeds.iter().map(|(node, place)| (node.0, place.to_string())).collect();
        Ok(self.write("seeds.json", &serde_json::to_vec(&seeds)?)?)
    }

    /// The first admin key of a cluster that this node founds, created at the first call. A repeated founding
    /// must propose the same one. The file stays: whoever may read this folder runs the node anyway.
    pub(crate) fn admin_key(&self) -> anyhow::Result<ClientKey> {
        if let Some(text) = self.read(ADMIN_KEY_FILE)? {
            return Ok(ClientKey::parse(std::str::from_utf8(&text)?)?);
        }
        let key = ClientKey::mint(&mut rand::rng());
        self.write(ADMIN_KEY_FILE, format!("{key}\n").as_bytes())?;
        Ok(key)
    }

    /// Where [`admin_key`](Self::admin_key) keeps it.
    pub(crate) fn admin_key_path(&self) -> PathBuf {
        self.dir.join(ADMIN_KEY_FILE)
    }

    /// The certificate of the client ports; `None` when there is none or it does not parse.
    pub(crate) fn client_certificate(&self) -> Option<ClientCertificate> {
        serde_json::from_slice(&self.read("client-ports.json").ok()??).ok()
    }

    pub(crate) fn set_client_certificate(&self, certificate: &ClientCertificate) -> anyhow::Result<()> {
        Ok(self.write("client-ports.json", &serde_json::to_vec(certificate)?)?)
    }

    /// Puts the authority's certificate where clients can read it (`--ca`). It is not secret.
    pub(crate) fn set_ca_pem(&self, pem: &str) -> io::Result<()> {
        if self.read(CA_FILE)?.as_deref() != Some(pem.as_bytes()) {
            replace_file(&self.dir.join(CA_FILE), pem.as_bytes(), 0o644, |_| Ok(()))?;
        }
        Ok(())
    }

    pub(crate) fn is_founding(&self) -> bool {
        self.dir.join("founding").exists()
    }

    pub(crate) fn set_founding(&self) -> io::Result<()> {
        self.write("founding", b"")
    }

    pub(crate) fn clear_founding(&self) -> io::Result<()> {
        self.remove("founding")
    }

    /// Whether this node has left its cluster for good.
    pub(crate) fn has_left(&self) -> bool {
        self.dir.join(LEFT_FILE).exists()
    }

    pub(crate) fn set_left(&self) -> io::Result<()> {
        self.write(LEFT_FILE, b"")
    }

    /// Increments the incarnation, durably, and returns it.
    pub(crate) fn next_incarnation(&self, wall_ms: u64) -> anyhow::Result<Incarnation> {
        let last: u64 = match self.read("incarnation")? {
            Some(text) => std::str::from_utf8(&text)?.trim().parse().context("`incarnation` is not a number")?,
            None => 0,
        };
        let next = last.saturating_add(1).max((wall_ms / 1_000).saturating_sub(EPOCH_UNIX_SECONDS));
        if next > INCARNATION_MAX {
            bail!("incarnation {next} is too large: `incarnation` is damaged, or the clock is decades ahead");
        }
        self.write("incarnation", next.to_string().as_bytes())?;
        Ok(Incarnation(next))
    }

    /// The cached metadata. The default state when there is none or it does not parse.
    ///
    /// # Errors
    /// The cluster is at a version that this binary does not support.
    pub(crate) fn metadata(&self) -> anyhow::Result<MetaState> {
        let Some(bytes) = self.read("metadata").ok().flatten() else { return Ok(MetaState::default()) };
        match MetaState::decode(&bytes) {
            Ok(meta) => check_cluster_version(meta.cluster_version()).map(|()| meta),
            Err(CodecError::Version { found, .. }) => {
                check_cluster_version(ClusterVersion(found)).map(|()| MetaState::default())
            }
            Err(CodecError::Malformed) => Ok(MetaState::default()),
        }
    }

    pub(crate) fn set_metadata(&self, state: &MetaState) -> io::Result<()> {
        self.write("metadata", &state.encode())
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file durably. Only the owner may read it.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        let replaced = failpoint(Place::FolderBeforeWrite).and_then(|()| {
            replace_file(&path, bytes, 0o600, |step| match step {
                ReplaceStep::Written => {
                    reached(Place::FolderBeside);
                    Ok(())
                }
                ReplaceStep::Synced => failpoint(Place::FolderSynced),
                ReplaceStep::Renamed => failpoint(Place::FolderRenamed),
            })
        });
        replaced.map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))?;
        reached(Place::FolderReplaced);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(&self.dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{attack, mutated};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn incarnations_increase_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let first = folder.next_incarnation((EPOCH_UNIX_SECONDS + 100) * 1_000).unwrap();
        let back = folder.next_incarnation(0).unwrap();
        assert_eq!((first, back), (Incarnation(100), Incarnation(101)));
    }

    #[test]
    fn a_folder_is_locked_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let _folder = Folder::open(dir.path()).unwrap();
        assert!(Folder::open(dir.path()).is_err());
    }

    #[test]
    fn a_new_folder_is_private_and_one_in_use_is_left_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        let made = parent.path().join("a/b");
        drop(Folder::open(&made).unwrap());
        assert_eq!(mode(&made), 0o700);
        let found = parent.path().join("c");
        fs::create_dir(&found).unwrap();
        fs::set_permissions(&found, fs::Permissions::from_mode(0o755)).unwrap();
        drop(Folder::open(&found).unwrap());
        assert_eq!(mode(&found), 0o700);
        fs::write(found.join(IDENTITY_FILE), "").unwrap();
        fs::set_permissions(&found, fs::Permissions::from_mode(0o750)).unwrap();
        drop(Folder::open(&found).unwrap());
        assert_eq!(mode(&found), 0o750);
    }

    #[test]
    fn a_retried_join_uses_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let first = folder.joining_key().unwrap().public_key_digest();
        assert_eq!(folder.joining_key().unwrap().public_key_digest(), first);
    }

    #[test]
    fn an_incarnation_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for last in [u64::MAX, INCARNATION_MAX] {
            fs::write(dir.path().join("incarnation"), last.to_string()).unwrap();
            assert!(folder.next_incarnation(0).is_err());
        }
        fs::remove_file(dir.path().join("incarnation")).unwrap();
        assert!(folder.next_incarnation(u64::MAX).is_err(), "a clock that far ahead is refused too");
        assert!(folder.next_incarnation(0).is_ok(), "the refused incarnation is not stored");
    }

    #[test]
    fn metadata_of_a_version_that_this_binary_does_not_support_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let above = VersionRange::supported().max.next();
        fs::write(dir.path().join("metadata"), [u8::try_from(above.0).unwrap()]).unwrap();
        let error = folder.metadata().unwrap_err().to_string();
        assert!(error.contains(&format!("install a binary that supports version {above}")), "{error}");
        fs::write(dir.path().join("metadata"), [1, 0xff]).unwrap();
        assert_eq!(folder.metadata().unwrap(), MetaState::default(), "a damaged cache is ignored");
    }

    #[test]
    fn hostile_files_are_refused_by_name_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let identity = crate::start::join::found_cluster(&folder, std::time::Duration::from_secs(60)).unwrap();
        folder.set_seeds(&[(NodeId(2), "127.0.0.1:7100".parse().unwrap())]).unwrap();
        folder.next_incarnation(0).unwrap();
        folder.set_metadata(&MetaState::default()).unwrap();
        let names = ["identity.json", "seeds.json", "incarnation", "metadata", "authority.json"];
        let written = names.map(|name| fs::read(dir.path().join(name)).unwrap());
        let damage = {
            let written = written.clone();
            (0..names.len()).prop_flat_map(move |file| (Just(file), mutated(Just(written[file].clone()))))
        };
        attack(200, damage, |(file, bytes)| {
            fs::write(dir.path().join(names[file]), &bytes).unwrap();
            if let Ok(Some(read)) = folder.identity() {
                assert_eq!((read.node(), read.cluster()), (identity.node(), identity.cluster()));
            }
            let _ = (folder.seeds(), folder.metadata(), folder.authority(Which::Current));
            if let Ok(next) = folder.next_incarnation(0) {
                assert!(next.0 <= INCARNATION_MAX);
            }
            for (name, bytes) in names.iter().zip(&written) {
                fs::write(dir.path().join(name), bytes).unwrap();
            }
        });
    }
}
