//! Revocation lists and OCSP responses as `openssl` makes them: every rule by one that keeps it and one that breaks it.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::OpenSsl;
use crate::pki::revocation::{
    MAX_CRL_OCTETS, MAX_OCSP_OCTETS, Status, Subject, Unusable, check_crl, check_ocsp, ocsp_request,
};
use crate::pki::{Certificate, load_certificates};
use crate::timer::UnixTime;

const CONFIG: &str = "
[ca]
default_ca=d
[d]
database=index.txt
default_md=sha256
default_crl_days=2
crl_extensions=plain
[plain]
authorityKeyIdentifier=keyid
[users]
issuingDistributionPoint=critical,@users_point
[users_point]
fullname=URI:http://crl.example.org/ca.crl
onlyuser=TRUE
[cas]
issuingDistributionPoint=critical,@cas_point
[cas_point]
onlyCA=TRUE
[elsewhere]
issuingDistributionPoint=critical,@elsewhere_point
[elsewhere_point]
fullname=URI:http://crl.example.org/another.crl
[indirect]
issuingDistributionPoint=critical,@indirect_point
[indirect_point]
indirectCRL=TRUE
[reasons]
issuingDistributionPoint=critical,@reasons_point
[reasons_point]
onlysomereasons=keyCompromise
[delta]
2.5.29.27=critical,DER:020101
[critical]
1.2.3.4=critical,DER:0500
[unknown]
1.2.3.4=DER:0500
[gateway]
crlDistributionPoints=URI:ldap:///CN=CA?certificateRevocationList,URI:http://crl.example.org/ca.crl
authorityInfoAccess=OCSP;URI:http://ocsp.example.org/,caIssuers;URI:http://crl.example.org/ca.cer
[responder]
extendedKeyUsage=OCSPSigning
noCheck=ignored
[checked]
extendedKeyUsage=OCSPSigning
[useless]
extendedKeyUsage=serverAuth,anyExtendedKeyUsage
noCheck=ignored
[mute]
keyUsage=keyAgreement
extendedKeyUsage=OCSPSigning
noCheck=ignored
[strange]
extendedKeyUsage=OCSPSigning
noCheck=ignored
1.2.3.4=critical,DER:0500
[authority]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
[nolists]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
";

/// An authority, another one, their gateways and their responders.
struct Lab(OpenSsl);

impl Lab {
    fn new() -> Self {
        let lab = Self(OpenSsl::new());
        lab.0.write("cnf", CONFIG);
        lab.authority("ca", "authority").authority("other", "authority");
        lab.issue("gw", "ca", 0x1001, "gateway")
            .issue("bad", "ca", 0x1002, "gateway");
        for (serial, responder) in (0x2000..).zip(["responder", "checked", "useless", "mute", "strange"]) {
            lab.issue(responder, "ca", serial, responder);
        }
        lab.issue("stranger", "other", 0x2010, "responder");
        lab.0.write(
            "index.txt",
            "V\t491231235959Z\t\t1001\tunknown\t/CN=gw\nR\t491231235959Z\t260102030405Z,keyCompromise\t1002\tunknown\t/CN=bad\n",
        );
        lab.0.write("empty.txt", "");
        lab
    }

    fn authority(&self, name: &str, section: &str) -> &Self {
        self.0
            .run("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.key");
        self.0.write(&format!("{name}.key"), self.0.read("new.key")).run(&format!(
            "req -x509 -new -key {name}.key -subj /O=Test/CN={name} -days 3000 -config cnf -extensions {section} -out {name}.pem"
        ));
        self
    }

    fn issue(&self, name: &str, ca: &str, serial: u32, section: &str) -> &Self {
        self.0
            .run(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"))
            .run(&format!("req -new -key {name}.key -subj /O=Test/CN={name} -out csr"))
            .run(&format!(
                "x509 -req -in csr -CA {ca}.pem -CAkey {ca}.key -set_serial {serial} -days 2000 -extfile cnf -extensions {section} -out {name}.pem"
            ));
        self
    }

    fn certificate(&self, name: &str) -> Certificate {
        load_certificates(&self.0.read(format!("{name}.pem")))
            .unwrap()
            .remove(0)
    }

    /// The authority's list with the extensions of a section.
    fn crl(&self, section: &str) -> Vec<u8> {
        self.crl_by("ca", section, "-md sha256")
    }

    fn crl_by(&self, ca: &str, section: &str, options: &str) -> Vec<u8> {
        self.0
            .run(&format!(
                "ca -gencrl -config cnf -cert {ca}.pem -keyfile {ca}.key -crlexts {section} {options} -out list.pem"
            ))
            .run("crl -in list.pem -outform DER -out list");
        self.0.read("list")
    }

    /// The answer about a certificate that is signed by `signer`, to our own request.
    fn ocsp(&self, name: &str, signer: &str, options: &str) -> Vec<u8> {
        let (certificate, issuer) = (self.certificate(name), self.certificate("ca"));
        let subject = Subject {
            certificate: &certificate,
            issuer: &issuer,
        };
        self.0.write("request", ocsp_request(subject));
        self.answer(signer, options)
    }

    fn answer(&self, signer: &str, options: &str) -> Vec<u8> {
        self.0.run(&format!(
            "ocsp -index index.txt -CA ca.pem -rsigner {signer}.pem -rkey {signer}.key -reqin request -respout response {options}"
        ));
        self.0.read("response")
    }

    fn look(
        &self,
        check: impl Fn(&[u8], Subject<'_>, UnixTime) -> Result<Status, Unusable>,
        octets: &[u8],
        name: &str,
        later: i64,
    ) -> Result<Status, Unusable> {
        let (certificate, issuer) = (self.certificate(name), self.certificate("ca"));
        let subject = Subject {
            certificate: &certificate,
            issuer: &issuer,
        };
        check(octets, subject, after(later))
    }

    fn list(&self, crl: &[u8], name: &str) -> Result<Status, Unusable> {
        self.look(check_crl, crl, name, 0)
    }

    fn response(&self, response: &[u8], name: &str) -> Result<Status, Unusable> {
        self.look(check_ocsp, response, name, 0)
    }
}

/// The time in so many seconds.
fn after(seconds: i64) -> UnixTime {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    UnixTime(Duration::from_secs(now.saturating_add_signed(seconds)))
}

const DAY: i64 = 86_400;
/// 2026-01-02T03:04:05Z.
const SINCE: UnixTime = UnixTime(Duration::from_secs(1_767_323_045));
const REVOKED: Result<Status, Unusable> = Ok(Status::Revoked {
    since: SINCE,
    reason: Some("key compromise"),
});

fn is_good(result: &Result<Status, Unusable>) -> bool {
    matches!(result, Ok(Status::Good { .. }))
}

#[test]
fn a_certificate_names_who_can_tell() {
    let lab = Lab::new();
    let gateway = lab.certificate("gw");
    assert_eq!(gateway.ocsp_urls(), ["http://ocsp.example.org/"]);
    let lists = [
        "ldap:///CN=CA?certificateRevocationList",
        "http://crl.example.org/ca.crl",
    ];
    assert_eq!(gateway.crl_urls(), lists);
    assert_eq!(gateway.serial(), [0x10, 0x01]);
    assert!(!gateway.has_ocsp_nocheck() && lab.certificate("responder").has_ocsp_nocheck());
    assert!(lab.certificate("responder").crl_urls().is_empty());
}

#[test]
fn a_list_tells_who_is_revoked() {
    let lab = Lab::new();
    for section in ["plain", "users", "unknown"] {
        let crl = lab.crl(section);
        assert!(
            is_good(&lab.list(&crl, "gw")),
            "{section}: {:?}",
            lab.list(&crl, "gw")
        );
        assert_eq!(lab.list(&crl, "bad"), REVOKED, "{section}");
    }
    // Until nextUpdate, and a little longer because clocks differ.
    let crl = lab.crl("plain");
    let Ok(Status::Good { until }) = lab.list(&crl, "gw") else {
        panic!()
    };
    assert!(
        until > after(2 * DAY - 60) && until < after(2 * DAY + 60),
        "{until}"
    );
    let look = |later| lab.look(check_crl, &crl, "gw", later);
    assert!(is_good(&look(2 * DAY + 200)) && is_good(&look(-200)));
    assert!(matches!(look(2 * DAY + 400), Err(Unusable::Expired(_))));
    assert_eq!(look(-400), Err(Unusable::NotYetValid));
    // Nobody is revoked: there is no list in the list.
    lab.0.write("index.txt", "");
    assert!(is_good(&lab.list(&lab.crl("plain"), "bad")));
}

#[test]
fn a_list_of_something_else_tells_nothing() {
    let lab = Lab::new();
    let error = |section| lab.list(&lab.crl(section), "gw").unwrap_err();
    assert_eq!(error("cas"), Unusable::OutOfScope);
    assert_eq!(error("elsewhere"), Unusable::OutOfScope);
    assert_eq!(error("indirect"), Unusable::Partial("an indirect list"));
    assert_eq!(error("reasons"), Unusable::Partial("a list of some reasons only"));
    assert_eq!(error("delta"), Unusable::Partial("a delta of another list"));
    assert_eq!(error("critical"), Unusable::CriticalExtension);
    // For users only says nothing of an authority.
    let ca = lab.certificate("ca");
    let itself = Subject {
        certificate: &ca,
        issuer: &ca,
    };
    assert_eq!(
        check_crl(&lab.crl("users"), itself, after(0)),
        Err(Unusable::OutOfScope)
    );
    assert!(is_good(&check_crl(&lab.crl("cas"), itself, after(0))));
}

#[test]
fn only_the_issuer_makes_lists() {
    let lab = Lab::new();
    assert_eq!(
        lab.list(&lab.crl_by("other", "plain", ""), "gw"),
        Err(Unusable::OtherIssuer)
    );
    // Another authority of the same name.
    let subject = lab.certificate("gw");
    lab.0.run("req -x509 -new -key other.key -subj /O=Test/CN=ca -days 3000 -config cnf -extensions authority -out twin.pem");
    lab.0.write("twin.key", lab.0.read("other.key"));
    assert_eq!(
        lab.list(&lab.crl_by("twin", "plain", ""), "gw"),
        Err(Unusable::Signature)
    );
    // An authority that may not.
    lab.authority("nolists", "nolists");
    let crl = lab.crl_by("nolists", "plain", "");
    let issuer = lab.certificate("nolists");
    let subject = Subject {
        certificate: &subject,
        issuer: &issuer,
    };
    assert_eq!(check_crl(&crl, subject, after(0)), Err(Unusable::NotAllowed));
    // Nobody believes SHA-1.
    let weak = lab.crl_by("ca", "plain", "-md sha1");
    assert_eq!(lab.list(&weak, "gw"), Err(Unusable::Algorithm));
    // One bit of what is signed, and of the signature.
    let crl = lab.crl("plain");
    let serial = crl.windows(2).position(|octets| octets == [0x10, 0x02]).unwrap();
    for place in [serial + 1, crl.len() - 1] {
        let mut forged = crl.clone();
        forged[place] ^= 1;
        assert_eq!(lab.list(&forged, "bad"), Err(Unusable::Signature), "{place}");
    }
}

#[test]
fn a_responder_tells_who_is_revoked() {
    let lab = Lab::new();
    for (signer, options) in [
        ("ca", "-ndays 1"),
        ("ca", "-ndays 1 -resp_key_id"),
        ("responder", "-ndays 1"),
        ("responder", "-ndays 1 -resp_key_id"),
        ("ca", ""),
    ] {
        let good = lab.ocsp("gw", signer, options);
        assert!(
            is_good(&lab.response(&good, "gw")),
            "{signer} {options}: {:?}",
            lab.response(&good, "gw")
        );
        assert_eq!(lab.response(&good, "bad"), Err(Unusable::OtherCertificate));
        let bad = lab.ocsp("bad", signer, options);
        assert_eq!(lab.response(&bad, "bad"), REVOKED, "{signer} {options}");
    }
    // One that the responder has never heard of.
    lab.0.write("index.txt", "");
    assert_eq!(
        lab.response(&lab.ocsp("gw", "ca", "-ndays 1"), "gw"),
        Err(Unusable::Unknown)
    );
}

#[test]
fn an_answer_about_several_tells_each() {
    let lab = Lab::new();
    lab.0
        .run("ocsp -issuer ca.pem -cert gw.pem -cert bad.pem -sha256 -cert gw.pem -no_nonce -reqout request");
    let answer = lab.answer("ca", "-ndays 1");
    assert!(is_good(&lab.response(&answer, "gw")));
    assert_eq!(lab.response(&answer, "bad"), REVOKED);
}

#[test]
fn any_hash_names_a_certificate() {
    let lab = Lab::new();
    for hash in ["sha1", "sha256", "sha384", "sha512"] {
        lab.0.run(&format!(
            "ocsp -{hash} -issuer ca.pem -cert bad.pem -no_nonce -reqout request"
        ));
        assert_eq!(
            lab.response(&lab.answer("ca", "-ndays 1"), "bad"),
            REVOKED,
            "{hash}"
        );
    }
    // The first is what we ask with, octet for octet.
    lab.0
        .run("ocsp -sha1 -issuer ca.pem -cert bad.pem -no_nonce -reqout theirs");
    lab.ocsp("bad", "ca", "-ndays 1");
    assert_eq!(lab.0.read("request"), lab.0.read("theirs"));
    // One that nobody should use.
    lab.0
        .run("ocsp -md5 -issuer ca.pem -cert bad.pem -no_nonce -reqout request");
    assert_eq!(
        lab.response(&lab.answer("ca", "-ndays 1"), "bad"),
        Err(Unusable::OtherCertificate)
    );
}

#[test]
fn an_answer_has_its_time() {
    let lab = Lab::new();
    let day = lab.ocsp("gw", "ca", "-ndays 1");
    let endless = lab.ocsp("gw", "responder", "");
    let look = |answer: &[u8], later| lab.look(check_ocsp, answer, "gw", later);
    assert!(is_good(&look(&day, DAY + 200)) && is_good(&look(&day, -200)));
    assert!(matches!(look(&day, DAY + 400), Err(Unusable::Expired(_))));
    assert_eq!(look(&day, -400), Err(Unusable::NotYetValid));
    assert!(is_good(&look(&endless, 3600)));
    assert!(matches!(look(&endless, 4000), Err(Unusable::Expired(_))));
}

#[test]
fn only_whom_the_issuer_names_answers() {
    let lab = Lab::new();
    let error = |signer, options| match lab.response(&lab.ocsp("gw", signer, options), "gw") {
        Err(Unusable::Responder(why)) => why,
        other => panic!("{signer}: {other:?}"),
    };
    for options in ["-ndays 1", "-ndays 1 -resp_key_id"] {
        assert!(error("useless", options).contains("id-kp-OCSPSigning"));
        assert!(error("gw", options).contains("id-kp-OCSPSigning"));
        assert!(error("mute", options).contains("key usage"));
        assert!(error("checked", options).contains("nocheck"));
        assert!(error("strange", options).contains("not valid"));
        assert!(error("stranger", options).contains("not by the issuer"));
    }
    assert!(error("responder", "-ndays 1 -resp_no_certs").contains("not there"));
    // A responder whose own certificate has expired.
    let old = lab.ocsp("gw", "responder", "-ndays 3000");
    assert!(is_good(&lab.look(check_ocsp, &old, "gw", 1999 * DAY)));
    let late = lab.look(check_ocsp, &old, "gw", 2001 * DAY);
    assert!(matches!(late, Err(Unusable::Responder(_))), "{late:?}");
    // Another authority's word about the same number.
    let other = lab.ocsp("gw", "other", "-ndays 1");
    assert!(matches!(lab.response(&other, "gw"), Err(Unusable::Responder(_))));
    // Nobody believes SHA-1.
    let weak = lab.ocsp("gw", "responder", "-ndays 1 -rmd sha1");
    assert_eq!(lab.response(&weak, "gw"), Err(Unusable::Algorithm));
    // One bit of what is signed: from revoked to something else.
    let bad = lab.ocsp("bad", "ca", "-ndays 1 -resp_no_certs");
    for place in [
        bad.len() - 1,
        bad.windows(2).position(|octets| octets == [0x10, 0x02]).unwrap() + 1,
    ] {
        let mut forged = bad.clone();
        forged[place] ^= 1;
        assert_eq!(lab.response(&forged, "bad"), Err(Unusable::Signature), "{place}");
    }
}

#[test]
fn a_responder_may_say_nothing() {
    let lab = Lab::new();
    let refused = |code| lab.response(&[0x30, 3, 0x0a, 1, code], "gw");
    assert_eq!(refused(1), Err(Unusable::Refused("malformedRequest")));
    assert_eq!(refused(3), Err(Unusable::Refused("tryLater")));
    assert_eq!(refused(6), Err(Unusable::Refused("unauthorized")));
    assert!(matches!(refused(4), Err(Unusable::Malformed(_))));
    assert!(matches!(refused(0), Err(Unusable::Malformed(_))));
    // openssl's own refusal of what is no request.
    lab.0.write("request", [0x30, 0]);
}

#[test]
fn what_is_cut_or_too_long_is_refused() {
    let lab = Lab::new();
    let (crl, ocsp) = (lab.crl("plain"), lab.ocsp("gw", "responder", "-ndays 1"));
    assert!(is_good(&lab.list(&crl, "gw")) && is_good(&lab.response(&ocsp, "gw")));
    let (gw, ca) = (lab.certificate("gw"), lab.certificate("ca"));
    let subject = Subject {
        certificate: &gw,
        issuer: &ca,
    };
    for len in 0..crl.len() {
        assert!(matches!(
            check_crl(&crl[..len], subject, after(0)),
            Err(Unusable::Malformed(_))
        ));
    }
    for len in 0..ocsp.len() {
        assert!(matches!(
            check_ocsp(&ocsp[..len], subject, after(0)),
            Err(Unusable::Malformed(_))
        ));
    }
    let longer = |octets: &[u8]| [octets, &[0]].concat();
    assert!(matches!(
        lab.list(&longer(&crl), "gw"),
        Err(Unusable::Malformed(_))
    ));
    assert!(matches!(
        lab.response(&longer(&ocsp), "gw"),
        Err(Unusable::Malformed(_))
    ));
    let huge = |octets: &[u8], len| [octets, &vec![0; len]].concat();
    let octets = crl.len() + MAX_CRL_OCTETS;
    assert_eq!(
        lab.list(&huge(&crl, MAX_CRL_OCTETS), "gw"),
        Err(Unusable::TooLarge { octets })
    );
    let octets = ocsp.len() + MAX_OCSP_OCTETS;
    assert_eq!(
        lab.response(&huge(&ocsp, MAX_OCSP_OCTETS), "gw"),
        Err(Unusable::TooLarge { octets })
    );
}

#[test]
fn a_long_list_is_read_to_its_end() {
    let lab = Lab::new();
    let mut index = String::new();
    for serial in 0x10_0000..0x10_3000 {
        index += &format!("R\t491231235959Z\t260102030405Z\t{serial:X}\tunknown\t/CN=x\n");
    }
    index += "R\t491231235959Z\t260102030405Z,keyCompromise\t1002\tunknown\t/CN=bad\n";
    lab.0.write("index.txt", index);
    let crl = lab.crl("plain");
    assert!(crl.len() > 250_000, "{}", crl.len());
    assert!(is_good(&lab.list(&crl, "gw")));
    assert_eq!(lab.list(&crl, "bad"), REVOKED);
}

#[test]
fn damage_never_clears_anybody() {
    let lab = Lab::new();
    let (crl, ocsp) = (lab.crl("plain"), lab.ocsp("bad", "responder", "-ndays 1"));
    let (bad, ca) = (lab.certificate("bad"), lab.certificate("ca"));
    let subject = Subject {
        certificate: &bad,
        issuer: &ca,
    };
    assert_eq!(
        (
            check_crl(&crl, subject, after(0)),
            check_ocsp(&ocsp, subject, after(0))
        ),
        (REVOKED, REVOKED)
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
    let change = (any::<prop::sample::Index>(), 1..=u8::MAX, any::<bool>());
    runner
        .run(&prop::collection::vec(change, 1..4), |changes| {
            for (octets, check) in [
                (&crl, check_crl as fn(&[u8], Subject<'_>, UnixTime) -> _),
                (&ocsp, check_ocsp),
            ] {
                let mut damaged = octets.clone();
                for (index, by, cut) in &changes {
                    let place = index.index(damaged.len());
                    damaged[place] ^= by;
                    if *cut && damaged.len() > 1 {
                        damaged.remove(place);
                    }
                }
                let result: Result<Status, Unusable> = check(&damaged, subject, after(0));
                prop_assert!(!is_good(&result), "{result:?}");
            }
            Ok(())
        })
        .unwrap();
}
