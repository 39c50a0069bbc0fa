//! A process that is limited to the first cluster version reads what the binaries did that knew no other, and
//! stops at the rest.

use flotilla_meta::{CodecError, MetaCommand, MetaState, SeenNode};
use flotilla_types::{ClusterVersion, Incarnation, NodeId, VersionRange, limit_supported};

#[test]
fn commands_and_states_of_later_versions_are_not_decoded() {
    limit_supported(ClusterVersion::FIRST);
    assert_eq!(VersionRange::supported(), VersionRange::FIRST_ONLY);
    let later = VersionRange { min: ClusterVersion::FIRST, max: ClusterVersion(2) };
    let seen = vec![SeenNode { node: NodeId(1), incarnation: Incarnation(1), versions: later }];
    let raise = MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen }.encode();
    let newer = Err(CodecError::Version { found: 2, known: 1 });
    assert_eq!(MetaCommand::decode(&raise), newer);
    assert_eq!(MetaCommand::decode(&[2, 8, 1]), newer);
    assert_eq!(MetaState::decode(&[2, 8, 1]).map(drop), Err(CodecError::Version { found: 2, known: 1 }));
    for none in [&[][..], &[0, 1]] {
        assert_eq!(MetaCommand::decode(none), Err(CodecError::Malformed));
        assert_eq!(MetaState::decode(none).map(drop), Err(CodecError::Malformed));
    }
    let first = MetaState::default().encode();
    assert_eq!(first[0], 1);
    assert_eq!(MetaState::decode(&first), Ok(MetaState::default()));
}
