//! Profiles for the lab, as the TOML that a user would write.

use std::fmt::Write as _;
use std::path::Path;

use super::names;

/// A profile in the making. Every method changes one thing, so that a test names only what it is about.
#[derive(Clone, Debug)]
pub struct Profile {
    name: String,
    address: String,
    port: Option<u16>,
    identity: String,
    ca: String,
    gateway: Vec<(String, String)>,
    auth: Vec<(String, String)>,
    ike: Vec<(String, String)>,
    child: Vec<(String, String)>,
    network: Vec<(String, String)>,
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

impl Profile {
    /// A profile without authentication for the gateway that calls itself `identity`, through NAT.
    pub fn new(identity: &str) -> Self {
        Self {
            name: identity.split('.').next().unwrap_or(identity).to_owned(),
            address: names::GATEWAY_NAT.to_owned(),
            port: None,
            identity: identity.to_owned(),
            ca: "ca.pem".to_owned(),
            gateway: Vec::new(),
            auth: Vec::new(),
            ike: Vec::new(),
            child: Vec::new(),
            network: Vec::new(),
        }
    }

    /// EAP-TLS that ends in the gateway (TLS 1.2).
    pub fn eap_tls() -> Self {
        Self::new("eap-tls.vpn.lab").method("eap-tls").credential("alice")
    }

    /// EAP-TLS that ends in a RADIUS server behind the gateway (TLS 1.3).
    pub fn eap_tls13() -> Self {
        let profile = Self::new("eap-tls13.vpn.lab")
            .method("eap-tls")
            .credential("alice");
        profile
            .auth("aaa_identity", names::RADIUS_NAME)
            .auth_raw("aaa_ca", r#"["aaa-ca.pem"]"#)
    }

    /// A certificate of Alice's (`alice`, `alice-rsa` ...) and the gateway that has the key named by `identity`.
    pub fn certificate(identity: &str, credential: &str) -> Self {
        Self::new(identity).method("certificate").credential(credential)
    }

    /// EAP-MSCHAPv2 with the right password.
    pub fn mschapv2() -> Self {
        let profile = Self::new("eap-mschapv2.vpn.lab").method("eap-mschapv2");
        profile
            .auth("username", names::USER)
            .auth("password", names::PASSWORD)
    }

    /// A method with the right password that ends in a RADIUS server behind the gateway.
    pub fn radius(method: &str) -> Self {
        let profile = Self::new("eap-radius.vpn.lab").method(method);
        profile
            .auth("username", names::USER)
            .auth("password", names::PASSWORD)
            .auth("aaa_identity", names::RADIUS_NAME)
            .auth_raw("aaa_ca", r#"["aaa-ca.pem"]"#)
    }

    /// A pre-shared key, the right one.
    pub fn psk() -> Self {
        Self::new("psk.vpn.lab")
            .method("psk")
            .auth("identity", names::PSK_USER)
            .auth("psk", names::PSK)
    }

    /// The name that the user sees.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Where the gateway is.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    /// The port of IKE_SA_INIT.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The identity that the gateway must prove.
    #[must_use]
    pub fn identity(mut self, identity: &str) -> Self {
        identity.clone_into(&mut self.identity);
        self
    }

    /// The file of the certification authority that vouches for the gateway.
    #[must_use]
    pub fn ca(mut self, file: &str) -> Self {
        file.clone_into(&mut self.ca);
        self
    }

    /// The file of the only certificate that the gateway may have.
    #[must_use]
    pub fn pin(self, file: &str) -> Self {
        let value = quoted(file);
        self.gateway("certificate", &value)
    }

    /// Sets a value in `[gateway]`, as TOML.
    #[must_use]
    pub fn gateway(mut self, key: &str, value: &str) -> Self {
        self.gateway.push((key.to_owned(), value.to_owned()));
        self
    }

    /// `method` in `[auth]`.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        self.auth("method", method)
    }

    /// The certificate and key `NAME.pem` and `NAME.key`.
    #[must_use]
    pub fn credential(self, name: &str) -> Self {
        self.auth("certificate", &format!("{name}.pem"))
            .auth("key", &format!("{name}.key"))
    }

    /// Sets a text in `[auth]`, in the place of an earlier one.
    #[must_use]
    pub fn auth(self, key: &str, text: &str) -> Self {
        let value = quoted(text);
        self.auth_raw(key, &value)
    }

    /// Sets a value of any type in `[auth]`, in the place of an earlier one.
    #[must_use]
    pub fn auth_raw(mut self, key: &str, value: &str) -> Self {
        self.auth.retain(|(present, _)| present != key);
        self.auth.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Takes a key out of `[auth]`.
    #[must_use]
    pub fn without_auth(mut self, key: &str) -> Self {
        self.auth.retain(|(present, _)| present != key);
        self
    }

    /// The only IKE proposals, in strongSwan's keywords.
    #[must_use]
    pub fn ike_proposals(self, keywords: &[&str]) -> Self {
        self.ike("proposals", &list(keywords))
    }

    /// Sets a value in `[ike]`, as TOML.
    #[must_use]
    pub fn ike(mut self, key: &str, value: &str) -> Self {
        self.ike.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The only ESP proposals, in strongSwan's keywords.
    #[must_use]
    pub fn esp_proposals(self, keywords: &[&str]) -> Self {
        self.child("proposals", &list(keywords))
    }

    /// What goes into the tunnel.
    #[must_use]
    pub fn remote_ts(self, networks: &[&str]) -> Self {
        self.child("remote_ts", &list(networks))
    }

    /// Sets a value in `[child]`, as TOML.
    #[must_use]
    pub fn child(mut self, key: &str, value: &str) -> Self {
        self.child.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets a value in `[network]`, as TOML.
    #[must_use]
    pub fn network(mut self, key: &str, value: &str) -> Self {
        self.network.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The file's text. Files of certificates and keys are looked for in `pki`.
    pub fn to_toml(&self, pki: &Path) -> String {
        let file = |value: &str| {
            let is_file = [".pem\"", ".key\"", ".p12\"", ".pem\"]"]
                .iter()
                .any(|end| value.ends_with(end));
            if is_file {
                value.replacen('"', &format!("\"{}/", pki.display()), 1)
            } else {
                value.to_owned()
            }
        };
        let mut text = format!(
            "name = {}\n\n[gateway]\naddress = {}\n",
            quoted(&self.name),
            quoted(&self.address)
        );
        if let Some(port) = self.port {
            let _ = writeln!(text, "port = {port}");
        }
        let _ = writeln!(
            text,
            "identity = {}\nca = [{}]",
            quoted(&self.identity),
            file(&quoted(&self.ca))
        );
        for (key, value) in &self.gateway {
            let _ = writeln!(text, "{key} = {}", file(value));
        }
        for (section, entries) in [
            ("auth", &self.auth),
            ("ike", &self.ike),
            ("child", &self.child),
            ("network", &self.network),
        ] {
            if entries.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n[{section}]");
            for (key, value) in entries {
                let _ = writeln!(text, "{key} = {}", file(value));
            }
        }
        text
    }
}

fn list(items: &[&str]) -> String {
    format!(
        "[{}]",
        items
            .iter()
            .map(|item| quoted(item))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// The profiles that `./x demo`, `./x bench` and a person at the lab's shell use: file name and profile.
pub fn standard() -> Vec<(&'static str, Profile)> {
    vec![
        ("eap-tls", Profile::eap_tls()),
        ("eap-tls13", Profile::eap_tls13()),
        ("eap-tls-v6", Profile::eap_tls().address(names::GATEWAY_V6)),
        (
            "eap-tls-direct",
            Profile::eap_tls().address(names::GATEWAY_DIRECT),
        ),
        ("cert", Profile::certificate("cert.vpn.lab", "alice")),
        ("cert-rsa", Profile::certificate("cert-rsa.vpn.lab", "alice-rsa")),
        (
            "cert-ed25519",
            Profile::certificate("cert-ed25519.vpn.lab", "alice-ed25519"),
        ),
        (
            "cert-long",
            Profile::certificate("cert-long.vpn.lab", "alice-long"),
        ),
        ("eap-mschapv2", Profile::mschapv2()),
        ("eap-ttls", Profile::radius("eap-ttls")),
        ("eap-peap", Profile::radius("eap-peap")),
        (
            "eap-gtc-code",
            Profile::radius("eap-gtc")
                .auth("username", names::CODE_USER)
                .without_auth("password"),
        ),
        ("psk", Profile::psk()),
        ("wrong-name", Profile::certificate("mismatch.vpn.lab", "alice")),
        (
            "wrong-password",
            Profile::mschapv2().auth("password", "not the password"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_for_in_the_folder_and_texts_are_not() {
        let text = Profile::eap_tls13().to_toml(Path::new("/pki"));
        assert!(text.contains("ca = [\"/pki/ca.pem\"]"), "{text}");
        assert!(text.contains("aaa_ca = [\"/pki/aaa-ca.pem\"]"), "{text}");
        assert!(text.contains("key = \"/pki/alice.key\""), "{text}");
        assert!(text.contains("identity = \"eap-tls13.vpn.lab\""), "{text}");
    }

    #[test]
    fn a_later_value_takes_the_place_of_an_earlier_one() {
        let text = Profile::psk().auth("psk", "another").to_toml(Path::new("/pki"));
        assert_eq!(text.matches("psk = ").count(), 1, "{text}");
        assert!(text.contains("psk = \"another\""), "{text}");
    }
}
