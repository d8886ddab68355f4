//! Whom TLS trusts, and what it shows of itself: PEM files, or the system's roots.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};
use crate::tier::remote::config::RemoteConfig;

/// The same settings twice: for the connections here, and for the crate that speaks to clusters.
pub(super) struct Tls {
    pub(super) client: Arc<ClientConfig>,
    pub(super) certificates: TlsCertificates,
}

impl Tls {
    /// # Errors
    /// [`Error::Config`] for files that cannot be read or used, and if nobody is trusted.
    pub(super) fn of(config: &RemoteConfig) -> Result<Self> {
        // Fails if the process has chosen another one already, which does as well.
        let chosen = rustls::crypto::ring::default_provider().install_default();
        if chosen.is_err() {
            log::debug!("TLS uses the cryptography that the process chose");
        }
        let authority = config.ca_file.as_deref();
        let authority = authority.map(|path| read("remote_ca_file", path));
        let authority = authority.transpose()?;
        let roots = match &authority {
            Some(pem) => pem.roots()?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let (client, own) = match (&config.certificate_file, &config.private_key_file) {
            (Some(certificate), Some(key)) => {
                let certificate = read("remote_certificate_file", certificate)?;
                let key = read("remote_private_key_file", key)?;
                let chain = certificate.certificates()?;
                let client = builder
                    .with_client_auth_cert(chain, key.private_key()?)
                    .map_err(|error| {
                        key.refuse(&format!(
                            "{error}; give the key of the file given as remote_certificate_file"
                        ))
                    })?;
                let own = ClientTlsConfig {
                    client_cert: certificate.bytes,
                    client_key: key.bytes,
                };
                (client, Some(own))
            }
            _ => (builder.with_no_client_auth(), None),
        };
        Ok(Self {
            client: Arc::new(client),
            certificates: TlsCertificates {
                client_tls: own,
                root_cert: authority.map(|pem| pem.bytes),
            },
        })
    }
}

/// A file in the PEM format, and the setting that names it.
struct Pem {
    name: &'static str,
    path: String,
    bytes: Vec<u8>,
}

fn read(name: &'static str, path: &Path) -> Result<Pem> {
    let mut pem = Pem {
        name,
        path: path.display().to_string(),
        bytes: Vec::new(),
    };
    pem.bytes = fs::read(path).map_err(|error| pem.refuse(&format!("cannot be read: {error}")))?;
    Ok(pem)
}

impl Pem {
    /// An error that says nothing of what is in the file.
    fn refuse(&self, remedy: &str) -> Error {
        Error::Config {
            name: self.name,
            value: self.path.clone(),
            remedy: remedy.to_owned(),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let all =
            CertificateDer::pem_slice_iter(&self.bytes).collect::<std::result::Result<_, _>>();
        let all: Vec<_> = all.map_err(|error| self.refuse(&format!("is not PEM: {error}")))?;
        if all.is_empty() {
            return Err(self.refuse("has no certificate; give a PEM file with BEGIN CERTIFICATE"));
        }
        Ok(all)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|_| {
            self.refuse("has no private key; give a PEM file with BEGIN PRIVATE KEY, not encrypted")
        })
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| {
                self.refuse(&format!("has a certificate that is none: {error}"))
            })?;
        }
        Ok(roots)
    }
}

fn system_roots() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::warn!("a certificate of the system: {error}");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(Error::Config {
            name: "remote_ca_file",
            value: "none".to_owned(),
            remedy: "the system trusts no authority (package ca-certificates); give the file of the one that signed the server's certificate".to_owned(),
        });
    }
    Ok(roots)
}
