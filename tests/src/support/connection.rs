//! Connections to client ports below the protocols.

use std::{io, net::SocketAddr, sync::Arc};

use flotilla_local_cluster::Cluster;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};

/// A connection to a client port, over TLS if the cluster is secure.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Connects to a client port of the cluster, as the cluster serves its clients.
pub async fn connect(cluster: &Cluster, at: SocketAddr) -> Box<dyn Connection> {
    try_connect(cluster, at).await.expect("a connection")
}

/// The same, for a node that may not accept any.
///
/// # Errors
/// It does not, and the cluster is not secure.
pub async fn try_connect(cluster: &Cluster, at: SocketAddr) -> io::Result<Box<dyn Connection>> {
    match cluster.credentials().ca() {
        Some(_) => Ok(Box::new(connect_tls(cluster, at).await)),
        None => Ok(Box::new(TcpStream::connect(at).await?)),
    }
}

/// Connects to a client port of a secure cluster.
pub async fn connect_tls(cluster: &Cluster, at: SocketAddr) -> TlsStream<TcpStream> {
    let ca = cluster.credentials().ca().expect("a secure cluster");
    let mut roots = RootCertStore::empty();
    // Two while the authority is replaced.
    for authority in CertificateDer::pem_file_iter(ca).expect("certificates") {
        roots.add(authority.expect("a certificate")).expect("an authority");
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(at).await.expect("a connection");
    TlsConnector::from(Arc::new(config)).connect(at.ip().into(), tcp).await.expect("a handshake")
}
