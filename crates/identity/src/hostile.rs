//! Hostile signing requests, certificates and identity files, as an attacker may send or a damaged disk may
//! return them.

use flotilla_hostile::{Proportion, any_bytes, attack, mutated};
use flotilla_types::{ClusterId, NodeId};
use proptest::{collection::vec, prelude::*, sample::select};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType, SigningKey};

use crate::{
    ClusterAuthority, IdentityError, IdentityPem, NodeIdentity, NodeKey, Part, authority::cert_from_pem,
    csr_public_key_digest, peer_of,
};

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// The certificate parser allocates tables of its own.
const CERTIFICATE: Proportion = Proportion { base: 64 << 10, per_byte: 64 };

/// A request that asks for every name and usage that a request can contain.
fn greedy_request(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["n1.flotilla".to_owned(), "*.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "mad");
    params.distinguished_name.push(DnType::CountryName, "XX");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names.extend([
        SanType::IpAddress([127, 0, 0, 1].into()),
        SanType::Rfc822Name("a@b".try_into().unwrap()),
        SanType::URI("http://x".try_into().unwrap()),
    ]);
    params.serialize_request(key).unwrap().der().to_vec()
}

/// DER of a constructed or primitive value.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag, 0x83];
    bytes.extend(&(content.len() as u32).to_be_bytes()[1..]);
    bytes.extend(content);
    bytes
}

/// The signed part of a request: the first value inside the outer one.
fn info_of(request: &[u8]) -> Vec<u8> {
    let header = |bytes: &[u8]| match bytes[1] {
        0x82 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        0x81 => (3, usize::from(bytes[2])),
        short => (2, usize::from(short)),
    };
    let inner = &request[header(request).0..];
    let (header_bytes, length) = header(inner);
    inner[..header_bytes + length].to_vec()
}

/// A request with this content, correctly signed by `key`.
fn signed(info: &[u8], key: &KeyPair) -> Vec<u8> {
    const ECDSA_WITH_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let signature = [&[0][..], &key.sign(info).unwrap()].concat();
    der(0x30, &[info, &ECDSA_WITH_SHA256, &der(3, &signature)].concat())
}

#[test]
fn hostile_requests_get_a_certificate_for_their_key_and_node_only() {
    let authority = ClusterAuthority::mint(CLUSTER).unwrap();
    let key = KeyPair::generate().unwrap();
    let plain = NodeKey::generate().unwrap().csr_der().unwrap();
    let greedy = greedy_request(&key);
    assert!(
        authority.issue(NodeId(5), &signed(&info_of(&greedy), &key), u64::MAX).is_ok(),
        "the test signs requests correctly"
    );
    let requests = prop_oneof![
        1 => mutated(Just(plain)),
        1 => mutated(Just(greedy.clone())),
        // The owner of a key can sign any content with it.
        3 => mutated(Just(info_of(&greedy))).prop_map(move |info| signed(&info, &key)),
    ];
    attack(1_000, requests, |request| {
        let digest = CERTIFICATE.of(request.len(), || csr_public_key_digest(&request));
        match authority.issue(NodeId(5), &request, u64::MAX) {
            Ok(cert) => {
                assert!(digest.is_ok());
                assert_eq!(peer_of(&cert, CLUSTER).ok(), Some(NodeId(5)), "the request does not choose its name");
            }
            Err(IdentityError::Malformed(part)) => assert_eq!(part, Part::Request),
            Err(error) => assert!(matches!(error, IdentityError::UnsupportedKey), "{error}"),
        }
    });
}

#[test]
fn hostile_certificates_give_no_other_identity() {
    let authority = ClusterAuthority::mint(CLUSTER).unwrap();
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(NodeId(5), &key.csr_der().unwrap(), u64::MAX).unwrap();
    attack(500, mutated(select(vec![cert.to_vec(), authority.cert_der().to_vec()])), |bytes| {
        let _ = CERTIFICATE.of(bytes.len(), || peer_of(&bytes, CLUSTER));
        let identity =
            NodeIdentity::new(CLUSTER, NodeId(5), authority.cert_der().clone(), bytes.clone().into(), key.clone());
        assert!(identity.is_err() || bytes == cert.to_vec(), "only the authority's signature counts");
    });
}

#[test]
fn hostile_identity_files_are_refused_or_unchanged() {
    let authority = ClusterAuthority::mint(CLUSTER).unwrap();
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(NodeId(5), &key.csr_der().unwrap(), u64::MAX).unwrap();
    let identity = NodeIdentity::new(CLUSTER, NodeId(5), authority.cert_der().clone(), cert, key).unwrap();
    let pem = identity.to_pem();
    let fields = [pem.cluster, pem.node, pem.ca_cert, pem.cert, pem.key].map(String::into_bytes);
    let damage = (0..5_usize).prop_flat_map(move |field| {
        let fields = fields.clone();
        mutated(Just(fields[field].clone())).prop_map(move |bytes| {
            let mut fields = fields.clone();
            fields[field] = bytes;
            fields.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        })
    });
    attack(200, damage, |[cluster, node, ca_cert, cert, key]| {
        let _ = ClusterAuthority::from_pem(&ca_cert, &key);
        if let Ok(read) =
            NodeIdentity::from_pem(&IdentityPem { cluster, node, ca_cert, cert, key, ..identity.to_pem() })
        {
            assert_eq!((read.cluster(), read.node()), (CLUSTER, NodeId(5)));
            assert_eq!(read.key().public_key_digest(), identity.key().public_key_digest());
        }
    });
}

#[test]
fn hostile_text_is_parsed_within_the_memory_bound() {
    let texts = vec(prop_oneof![Just(b"-----BEGIN CERTIFICATE-----\n".to_vec()), any_bytes(40)], 0..4);
    attack(300, texts, |parts| {
        let text = String::from_utf8_lossy(&parts.concat()).into_owned();
        let _ = CERTIFICATE.of(text.len(), || cert_from_pem(&text, Part::Certificate));
        let _ = NodeKey::from_pem(&text);
    });
}
