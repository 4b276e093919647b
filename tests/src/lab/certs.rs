//! The certificates of the lab: certification authorities, gateways right and wrong, and Alice with every kind of key.
//!
//! All of it is made anew for each lab and never leaves its folder.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
    date_time_ymd,
};

use super::names;

/// Anything that went wrong while making certificates; the text says what.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The passphrase of every protected key and bag of the lab.
pub const PASSPHRASE: &str = "lab passphrase";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes every key and certificate of the lab in `dir`: `NAME.pem` (certificate, then intermediate ones), `NAME.key`
/// (PKCS#8), and for `alice` also a protected key and PKCS#12 bags.
///
/// # Errors
/// When `openssl` is not installed, or a file cannot be written.
pub fn write_all(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir)?;
    let maker = Maker { dir: dir.to_owned() };
    let root = maker.authority("ca", "Lab Root CA", None)?;
    let other = maker.authority("other-ca", "Somebody Else's CA", None)?;
    let aaa = maker.authority("aaa-ca", "Lab AAA CA", None)?;
    let first = maker.rsa_authority("long-ca-1", "Lab Intermediate CA One", &root)?;
    let second = maker.rsa_authority("long-ca-2", "Lab Intermediate CA Two", &first)?;
    let alices = maker.rsa_authority("alice-ca", "Lab Intermediate CA of Alice", &root)?;

    maker.gateway("server-ecdsa", KeyType::P256, &root, Wrong::Nothing)?;
    maker.gateway("server-p384", KeyType::P384, &root, Wrong::Nothing)?;
    maker.with_p521(
        "server-p521",
        "Lab server-p521",
        "serverAuth",
        "DNS:cert-p521.vpn.lab",
    )?;
    maker.gateway("server-rsa", KeyType::Rsa(3072), &root, Wrong::Nothing)?;
    maker.gateway("server-ed25519", KeyType::Ed25519, &root, Wrong::Nothing)?;
    maker.gateway("server-long", KeyType::Rsa(3072), &second, Wrong::Nothing)?;
    maker.gateway("server-expired", KeyType::P256, &root, Wrong::Expired)?;
    maker.gateway("server-notyet", KeyType::P256, &root, Wrong::NotYetValid)?;
    maker.gateway("server-clientonly", KeyType::P256, &root, Wrong::ClientOnly)?;
    maker.gateway("server-unknown", KeyType::P256, &other, Wrong::Issuer)?;
    maker.gateway("server-elsewhere", KeyType::P256, &root, Wrong::Name)?;
    maker.gateway("radius", KeyType::P256, &aaa, Wrong::Name)?;

    maker.status(&root, &other)?;

    maker.client("alice", KeyType::P256, &root)?;
    maker.client("alice-p384", KeyType::P384, &root)?;
    maker.with_p521(
        "alice-p521",
        "Lab alice-p521",
        "clientAuth",
        "email:alice-p521@vpn.lab",
    )?;
    maker.client("alice-rsa", KeyType::Rsa(3072), &root)?;
    maker.client("alice-ed25519", KeyType::Ed25519, &root)?;
    maker.client("alice-long", KeyType::Rsa(3072), &alices)?;
    maker.client("mallory", KeyType::P256, &other)?;

    maker.chain("server-long", &["long-ca-2", "long-ca-1"])?;
    maker.chain("alice-long", &["alice-ca"])?;
    maker.protected_forms("alice")?;
    Ok(())
}

#[derive(Clone, Copy)]
enum KeyType {
    P256,
    P384,
    Ed25519,
    Rsa(u32),
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    Expired,
    NotYetValid,
    ClientOnly,
    Issuer,
    /// It has none of the gateway's names.
    Name,
}

struct Maker {
    dir: PathBuf,
}

type Authority = Issuer<'static, KeyPair>;

impl Maker {
    /// A certification authority with a P-256 key, signed by itself or by `issuer`.
    fn authority(&self, file: &str, name: &str, issuer: Option<&Authority>) -> Result<Authority, Error> {
        let key = KeyPair::generate()?;
        self.write(&format!("{file}.key"), key.serialize_pem().as_bytes())?;
        self.issue_authority(file, name, key, issuer)
    }

    fn rsa_authority(&self, file: &str, name: &str, issuer: &Authority) -> Result<Authority, Error> {
        self.generate(file, KeyType::Rsa(2048))?;
        let pem = fs::read_to_string(self.dir.join(format!("{file}.key")))?;
        let key = KeyPair::from_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256)?;
        self.issue_authority(file, name, key, Some(issuer))
    }

    fn issue_authority(
        &self,
        file: &str,
        name: &str,
        key: KeyPair,
        issuer: Option<&Authority>,
    ) -> Result<Authority, Error> {
        let mut params = params(name, Wrong::Nothing);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, issuer)?,
            None => params.self_signed(&key)?,
        };
        self.write(&format!("{file}.pem"), certificate.pem().as_bytes())?;
        Ok(Issuer::new(params, key))
    }

    fn gateway(&self, file: &str, key: KeyType, issuer: &Authority, wrong: Wrong) -> Result<(), Error> {
        let mut params = params(&format!("Lab {file}"), wrong);
        params.subject_alt_names = if file == "radius" {
            vec![dns(names::RADIUS_NAME)?]
        } else if wrong != Wrong::Nothing {
            vec![dns(&format!("{}.vpn.lab", file.trim_start_matches("server-")))?]
        } else {
            let addresses = names::GATEWAY_ADDRESSES
                .iter()
                .map(|text| Ok(SanType::IpAddress(text.parse::<IpAddr>()?)));
            let identities = names::GATEWAY_IDENTITIES.iter().map(|name| dns(name));
            identities.chain(addresses).collect::<Result<_, Error>>()?
        };
        params.extended_key_usages = vec![match wrong {
            Wrong::ClientOnly => ExtendedKeyUsagePurpose::ClientAuth,
            Wrong::Nothing | Wrong::Expired | Wrong::NotYetValid | Wrong::Issuer | Wrong::Name => {
                ExtendedKeyUsagePurpose::ServerAuth
            }
        }];
        self.issue(file, key, params, issuer)
    }

    /// Gateways whose certificates name who can tell whether they were revoked, and what is told.
    fn status(&self, root: &Authority, other: &Authority) -> Result<(), Error> {
        let list = format!("http://{}/moved.crl", names::STATUS_NAME);
        let (ocsp, nobody) = (
            format!("http://{}/ocsp", names::STATUS),
            format!("http://{}:81/", names::STATUS),
        );
        let all: [(&str, &Authority, [Option<&String>; 2]); 7] = [
            ("listed", root, [Some(&list), None]),
            ("listed-revoked", root, [Some(&list), None]),
            ("ocsp", root, [None, Some(&ocsp)]),
            ("ocsp-revoked", root, [None, Some(&ocsp)]),
            ("status-down", root, [Some(&nobody), Some(&nobody)]),
            ("second-choice", root, [Some(&list), Some(&nobody)]),
            ("untrusted", other, [Some(&list), Some(&ocsp)]),
        ];
        let (mut revoked, mut index) = (Vec::new(), String::new());
        for (serial, (name, issuer, [list, ocsp])) in (0x1000_u64..).zip(all) {
            let mut params = params(&format!("Lab {name}"), Wrong::Nothing);
            params.subject_alt_names = vec![dns(&format!("{name}.vpn.lab"))?];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.serial_number = Some(SerialNumber::from(serial));
            params.crl_distribution_points = list
                .iter()
                .map(|url| CrlDistributionPoint {
                    uris: vec![(*url).clone()],
                })
                .collect();
            params.custom_extensions = ocsp.iter().map(|url| responder_at(url)).collect();
            self.issue(&format!("server-{name}"), KeyType::P256, params, issuer)?;
            // As openssl's index of certificates has it, see ca(1).
            index += &if name.ends_with("revoked") {
                revoked.push(RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: date_time_ymd(2026, 1, 2),
                    reason_code: Some(RevocationReason::KeyCompromise),
                    invalidity_date: None,
                });
                format!("R\t491231235959Z\t260102000000Z,keyCompromise\t{serial:X}\tunknown\t/CN={name}\n")
            } else {
                format!("V\t491231235959Z\t\t{serial:X}\tunknown\t/CN={name}\n")
            };
        }
        self.write("index.txt", index.as_bytes())?;
        let list = CertificateRevocationListParams {
            this_update: params("", Wrong::Nothing).not_before,
            next_update: params("", Wrong::Nothing).not_after,
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write("ca.crl", list.signed_by(root)?.der())?;
        let mut responder = params("Lab OCSP responder", Wrong::Nothing);
        responder.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        let nocheck = [1, 3, 6, 1, 5, 5, 7, 48, 1, 5];
        responder.custom_extensions = vec![CustomExtension::from_oid_content(&nocheck, vec![5, 0])];
        self.issue("ocsp", KeyType::P256, responder, root)
    }

    fn client(&self, file: &str, key: KeyType, issuer: &Authority) -> Result<(), Error> {
        let mut params = params(&format!("Lab {file}"), Wrong::Nothing);
        params.subject_alt_names = vec![SanType::Rfc822Name(format!("{file}@vpn.lab").try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, key, params, issuer)
    }

    fn issue(
        &self,
        file: &str,
        key: KeyType,
        mut params: CertificateParams,
        issuer: &Authority,
    ) -> Result<(), Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.generate(file, key)?;
        let public = openssl(&[
            "pkey",
            "-in",
            &self.path(&format!("{file}.key")),
            "-pubout",
            "-outform",
            "DER",
        ])?;
        let public = SubjectPublicKeyInfo::from_der(&public)?;
        self.write(
            &format!("{file}.pem"),
            params.signed_by(&public, issuer)?.pem().as_bytes(),
        )
    }

    /// Writes a new private key to `FILE.key`.
    fn generate(&self, file: &str, key: KeyType) -> Result<(), Error> {
        let path = self.path(&format!("{file}.key"));
        let (algorithm, option) = match key {
            KeyType::P256 => ("EC", Some("ec_paramgen_curve:P-256".to_owned())),
            KeyType::P384 => ("EC", Some("ec_paramgen_curve:P-384".to_owned())),
            KeyType::Ed25519 => ("ED25519", None),
            KeyType::Rsa(bits) => ("RSA", Some(format!("rsa_keygen_bits:{bits}"))),
        };
        let mut arguments = vec!["genpkey", "-algorithm", algorithm, "-out", &path];
        if let Some(option) = &option {
            arguments.extend(["-pkeyopt", option]);
        }
        openssl(&arguments)?;
        Ok(())
    }

    /// A P-521 key and its certificate, which rcgen with ring does not know.
    fn with_p521(&self, file: &str, name: &str, usage: &str, alternative: &str) -> Result<(), Error> {
        let (key, request) = (
            self.path(&format!("{file}.key")),
            self.path(&format!("{file}.csr")),
        );
        let (extensions, certificate) = (
            self.path(&format!("{file}.ext")),
            self.path(&format!("{file}.pem")),
        );
        let (ca, ca_key, subject) = (
            self.path("ca.pem"),
            self.path("ca.key"),
            format!("/O=Peregrine lab/CN={name}"),
        );
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-521",
            "-out",
            &key,
        ])?;
        openssl(&["req", "-new", "-key", &key, "-subj", &subject, "-out", &request])?;
        let text = format!(
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={usage}\n\
             subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        );
        fs::write(&extensions, text)?;
        let mut arguments = vec![
            "x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-days", "30",
        ];
        arguments.extend([
            "-CAcreateserial",
            "-sha256",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ]);
        openssl(&arguments)?;
        Ok(())
    }

    /// Appends the certificates of `issuers` to `FILE.pem`.
    fn chain(&self, file: &str, issuers: &[&str]) -> Result<(), Error> {
        let mut out = fs::OpenOptions::new()
            .append(true)
            .open(self.dir.join(format!("{file}.pem")))?;
        for issuer in issuers {
            out.write_all(&fs::read(self.dir.join(format!("{issuer}.pem")))?)?;
        }
        Ok(())
    }

    /// The same key under a passphrase: PKCS#8, PKCS#12 of today, and PKCS#12 with the RC2 and 3DES of old systems.
    fn protected_forms(&self, file: &str) -> Result<(), Error> {
        let (key, certificate) = (
            self.path(&format!("{file}.key")),
            self.path(&format!("{file}.pem")),
        );
        let (passphrase, ca) = (format!("pass:{PASSPHRASE}"), self.path("ca.pem"));
        let encrypted = self.path(&format!("{file}-encrypted.key"));
        openssl(&[
            "pkcs8",
            "-topk8",
            "-in",
            &key,
            "-out",
            &encrypted,
            "-passout",
            &passphrase,
        ])?;
        for (suffix, legacy) in [("", false), ("-legacy", true)] {
            let out = self.path(&format!("{file}{suffix}.p12"));
            let mut arguments = vec![
                "pkcs12",
                "-export",
                "-inkey",
                &key,
                "-in",
                &certificate,
                "-certfile",
                &ca,
            ];
            arguments.extend(["-out", &out, "-passout", &passphrase]);
            if legacy {
                arguments.push("-legacy");
            }
            openssl(&arguments)?;
        }
        Ok(())
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        Ok(fs::write(self.dir.join(file), bytes)?)
    }
}

fn dns(name: &str) -> Result<SanType, Error> {
    Ok(SanType::DnsName(name.try_into()?))
}

fn params(name: &str, wrong: Wrong) -> CertificateParams {
    let today = date_time_ymd(1970, 1, 1) + SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = match wrong {
        Wrong::Expired => (today - DAY * 30, today - DAY),
        Wrong::NotYetValid => (today + DAY, today + DAY * 30),
        Wrong::Nothing | Wrong::ClientOnly | Wrong::Issuer | Wrong::Name => (today - DAY, today + DAY * 30),
    };
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Peregrine lab");
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params
}

/// An authorityInfoAccess that names an OCSP responder (RFC 5280, section 4.2.2.1).
fn responder_at(url: &str) -> CustomExtension {
    let short = |text: &[u8]| u8::try_from(text.len()).expect("URLs of the lab are short");
    let method = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1];
    let description = [&method[..], &[0x86, short(url.as_bytes())], url.as_bytes()].concat();
    let access = [&[0x30, short(&description)], &description[..]].concat();
    let value = [&[0x30, short(&access)], &access[..]].concat();
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], value)
}

/// Runs `openssl` and returns what it prints. rcgen makes no RSA and no P-521 keys with ring, and no PKCS#12.
fn openssl(arguments: &[&str]) -> Result<Vec<u8>, Error> {
    let output = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("openssl cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!(
        "openssl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}
