//! TLS to the broker: rustls with the ring provider, certificates from PEM files.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// What is wrong with the files, and which configuration key names them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or is no PEM.
    #[error("mqtt.{key} {path}: {cause}")]
    File {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: String,
        /// What the reader says.
        cause: pem::Error,
    },
    /// A PEM file without a certificate.
    #[error("mqtt.{key} {path}: holds no certificate in PEM form")]
    Empty {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: String,
    },
    /// A system without trusted authorities.
    #[error("this system has no trusted certificate authorities; install ca-certificates or set mqtt.ca")]
    NoSystemRoots,
    /// A client certificate that does not go with its key, or that rustls does not take.
    #[error("mqtt.cert and mqtt.key: {0}")]
    Identity(rustls::Error),
    /// An authority that rustls does not take, or a provider that lacks the protocol versions.
    #[error("mqtt.ca: {0}")]
    Authorities(rustls::Error),
}

/// Reads the files and builds the client's side. Blocks on the disk.
///
/// # Errors
/// Files that are missing, no PEM, or do not go together.
pub fn client(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates("ca", path)? {
                roots.add(certificate).map_err(TlsError::Authorities)?;
            }
        }
        None => {
            // Single certificates of a system's store that do not parse are no reason to trust none of them.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Authorities)?
        .with_root_certificates(roots);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates("cert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(file_error("key", key))?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Identity)
        }
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(file_error(key, path))?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { key, path: path.display().to_string() });
    }
    Ok(certificates)
}

fn file_error(key: &'static str, path: &Path) -> impl FnOnce(pem::Error) -> TlsError {
    let path = path.display().to_string();
    move |cause| TlsError::File { key, path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.pem");
        let error = client(Some(&missing), None).unwrap_err().to_string();
        assert!(error.starts_with("mqtt.ca ") && error.contains("missing.pem"), "{error}");
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate").unwrap();
        assert!(matches!(client(Some(&empty), None), Err(TlsError::Empty { key: "ca", .. })));
    }
}
