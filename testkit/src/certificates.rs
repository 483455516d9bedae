//! Certificates of every kind, right and wrong, from an authority that lives as long as a test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority in a folder of its own.
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: it is for this machine.
    None,
    /// It is for another host.
    OtherHost,
    /// It was valid once.
    Expired,
    /// No authority signed it.
    SelfSigned,
}

/// A certificate and its key, in PEM files; they can be written over.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Both in one file, the key first.
    pub both: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority for tests");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { dir, issuer }
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate and its key to the files named `name`, over what is there.
    pub fn issue(&self, name: &str, flaw: Flaw) -> Files {
        let hosts: &[&str] = if flaw == Flaw::OtherHost { &["other.example"] } else { &["localhost", "127.0.0.1"] };
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names of hosts");
        params.distinguished_name.push(rcgen::DnType::CommonName, "a server of tests");
        if flaw == Flaw::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = match flaw {
            Flaw::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let (certificate, key) = (certificate.expect("signed").pem(), key.serialize_pem());
        let place = |end: &str| self.dir.path().join(format!("{name}.{end}.pem"));
        let files = Files { certificate: place("certificate"), key: place("key"), both: place("both") };
        let write = |path: &Path, text: &str| fs::write(path, text).expect("written");
        write(&files.certificate, &certificate);
        write(&files.key, &key);
        write(&files.both, &format!("{key}{certificate}"));
        files
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
