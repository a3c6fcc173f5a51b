//! A certificate authority for one cluster. The certificates are X.509 v3, because rustls refuses v1 ones.

use anyhow::{Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A certificate and its private key, both PEM.
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

/// Signs the certificates of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub cert: String,
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "torpor-cluster");
        let cert = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), cert })
    }

    /// For a server that is reached under these names and addresses.
    pub fn serving(&self, names: &[&str]) -> Result<Identity> {
        let sans: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(sans)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, "kube-apiserver", &[])
    }

    /// For a user with at most two groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user, groups)
    }

    fn sign(&self, mut params: CertificateParams, name: &str, groups: &[&str]) -> Result<Identity> {
        // rcgen keeps one value for each kind of name, and the same attribute can be spelled in two ways.
        const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];
        let spellings = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
        ensure!(groups.len() <= spellings.len(), "a certificate here carries two groups at most");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for (spelling, group) in spellings.into_iter().zip(groups) {
            params.distinguished_name.push(spelling, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { cert, key: key.serialize_pem() })
    }

    /// A kubeconfig that needs no other file, so it can be copied around.
    pub fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<String> {
        let client = self.client(user, groups)?;
        let data = |pem: &str| -> Value { BASE64_STANDARD.encode(pem).into() };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "torpor",
            "clusters": [{
                "name": "torpor",
                "cluster": {"server": server, "certificate-authority-data": data(&self.cert)},
            }],
            "users": [{
                "name": user,
                "user": {
                    "client-certificate-data": data(&client.cert),
                    "client-key-data": data(&client.key),
                },
            }],
            "contexts": [{"name": "torpor", "context": {"cluster": "torpor", "user": user}}],
        });
        Ok(serde_yaml::to_string(&config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfig_names_its_user_and_embeds_everything() {
        let authority = Authority::new().unwrap();
        let text = authority.kubeconfig("https://127.0.0.1:1", "yes", &["a", "b"]).unwrap();
        let config: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(config["users"][0]["name"], "yes");
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:1");
        let ca = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
        assert_eq!(BASE64_STANDARD.decode(ca).unwrap(), authority.cert.as_bytes());
    }

    #[test]
    fn a_third_group_is_refused() {
        let authority = Authority::new().unwrap();
        assert!(authority.client("u", &["a", "b", "c"]).is_err());
    }
}
