//! The certificate of a server that speaks TLS, read again when its files change.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::watched::{LOOK_EVERY, Watched};

/// A certificate chain and its private key, in PEM files.
pub struct Certificate {
    chain: Watched<Vec<CertificateDer<'static>>>,
    key: Watched<PrivateKeyDer<'static>>,
    current: parking_lot::RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl Certificate {
    /// The error is a sentence about the files.
    pub fn open(chain: PathBuf, key: PathBuf) -> Result<Arc<Self>, String> {
        let chain = Watched::open(chain, |bytes| {
            let chain = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
            let chain = chain.ok().filter(|chain| !chain.is_empty());
            chain.ok_or_else(|| "must hold a certificate chain in PEM".to_owned())
        })?;
        let key = Watched::open(key, |bytes| {
            PrivateKeyDer::from_pem_slice(bytes).map_err(|_| "must hold a private key in PEM".to_owned())
        })?;
        let current = certified(&chain.get(), &key.get())?.into();
        Ok(Arc::new(Self { chain, key, current }))
    }

    /// Reads the files again when they change; runs as long as the server does. New connections get the new
    /// certificate once chain and key fit each other.
    pub(crate) async fn keep_up(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let before = (self.chain.get(), self.key.get());
            self.chain.look();
            self.key.look();
            let now = (self.chain.get(), self.key.get());
            if Arc::ptr_eq(&before.0, &now.0) && Arc::ptr_eq(&before.1, &now.1) {
                continue;
            }
            match certified(&now.0, &now.1) {
                Ok(certified) => *self.current.write() = certified,
                Err(what) => tracing::warn!(what, "waiting for the other file of a changed certificate"),
            }
        }
    }

    pub(crate) fn config(self: &Arc<Self>) -> ServerConfig {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(Current(Arc::clone(self)));
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        // These versions are ones that the provider has, so the fallback is never taken.
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&versions).unwrap_or_else(|_| ServerConfig::builder());
        builder.with_no_client_auth().with_cert_resolver(resolver)
    }
}

#[derive(Debug)]
struct Current(Arc<Certificate>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current.read()))
    }
}

/// Fails if the key is not the certificate's.
fn certified(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, String> {
    let certified = CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &ring::default_provider());
    certified.map(Arc::new).map_err(|_| "the TLS certificate and the TLS key do not belong together".into())
}
