//! IANA's numbers.
//!
//! Every registry is a newtype: a number without a name here is as good a value as any other and survives. Names
//! are IANA's (or the notation of RFC 7296 where that is what people say), without the prefix that all of a
//! registry share. `Debug` and `Display` give the name and the number, as in `NO_PROPOSAL_CHOSEN (14)`; for a
//! number without a name they give the registry and the number, as in `notify 40001`.

use std::fmt;

/// Defines a registry: a newtype over its number, the constants, and their text.
///
/// `prefix` is put before a constant's own name in texts; `= "text"` after a number replaces the name altogether.
macro_rules! registry {
    (
        $(#[$attribute:meta])*
        $name:ident($number:ty), prefix $prefix:literal, otherwise $otherwise:literal;
        $( $constant:ident $value:literal $(= $text:literal)?; )*
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $number);

        impl $name {
            $(
                #[doc = concat!("`", registry!(@text $prefix $constant $($text)?), "`: ", stringify!($value), ".")]
                pub const $constant: Self = Self($value);
            )*

            /// The name, if the number has one here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $value => Some(registry!(@text $prefix $constant $($text)?)), )*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{name} ({})", self.0),
                    None => write!(f, "{} {}", $otherwise, self.0),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
    (@text $prefix:literal $constant:ident) => { concat!($prefix, stringify!($constant)) };
    (@text $prefix:literal $constant:ident $text:literal) => { $text };
}

registry! {
    /// Exchange types (RFC 7296, section 3.1).
    ExchangeType(u8), prefix "", otherwise "exchange";
    IKE_SA_INIT 34;
    IKE_AUTH 35;
    CREATE_CHILD_SA 36;
    INFORMATIONAL 37;
    IKE_SESSION_RESUME 38;
    IKE_INTERMEDIATE 43;
    IKE_FOLLOWUP_KE 44;
}

registry! {
    /// Payload types (RFC 7296, section 3.2), in the RFC's notation.
    PayloadType(u8), prefix "", otherwise "payload";
    NONE 0 = "no payload";
    SA 33;
    KE 34;
    ID_INITIATOR 35 = "IDi";
    ID_RESPONDER 36 = "IDr";
    CERT 37;
    CERTREQ 38;
    AUTH 39;
    NONCE 40 = "Nonce";
    NOTIFY 41 = "N";
    DELETE 42 = "D";
    VENDOR_ID 43 = "V";
    TS_INITIATOR 44 = "TSi";
    TS_RESPONDER 45 = "TSr";
    SK 46;
    CP 47;
    EAP 48;
    GSPM 49;
    SKF 53;
    PS 54;
}

registry! {
    /// Security protocol identifiers (RFC 7296, section 3.3.1).
    ProtocolId(u8), prefix "", otherwise "protocol";
    NONE 0 = "no protocol";
    IKE 1;
    AH 2;
    ESP 3;
}

registry! {
    /// Transform types (RFC 7296, section 3.3.2; RFC 9370, section 2.2.1).
    TransformType(u8), prefix "", otherwise "transform type";
    ENCR 1;
    PRF 2;
    INTEG 3;
    KE 4;
    ESN 5;
    ADDKE1 6;
    ADDKE2 7;
    ADDKE3 8;
    ADDKE4 9;
    ADDKE5 10;
    ADDKE6 11;
    ADDKE7 12;
}

registry! {
    /// Encryption algorithms, transform type 1.
    EncrId(u16), prefix "ENCR_", otherwise "encryption algorithm";
    DES_IV64 1;
    DES 2;
    TRIPLE_DES 3 = "ENCR_3DES";
    RC5 4;
    IDEA 5;
    CAST 6;
    BLOWFISH 7;
    TRIPLE_IDEA 8 = "ENCR_3IDEA";
    DES_IV32 9;
    NULL 11;
    AES_CBC 12;
    AES_CTR 13;
    AES_CCM_8 14;
    AES_CCM_12 15;
    AES_CCM_16 16;
    AES_GCM_8 18;
    AES_GCM_12 19;
    AES_GCM_16 20;
    NULL_AUTH_AES_GMAC 21;
    CAMELLIA_CBC 23;
    CAMELLIA_CTR 24;
    CAMELLIA_CCM_8 25;
    CAMELLIA_CCM_12 26;
    CAMELLIA_CCM_16 27;
    CHACHA20_POLY1305 28;
    AES_CCM_8_IIV 29;
    AES_GCM_16_IIV 30;
    CHACHA20_POLY1305_IIV 31;
}

registry! {
    /// Pseudorandom functions, transform type 2.
    PrfId(u16), prefix "PRF_", otherwise "pseudorandom function";
    HMAC_MD5 1;
    HMAC_SHA1 2;
    HMAC_TIGER 3;
    AES128_XCBC 4;
    HMAC_SHA2_256 5;
    HMAC_SHA2_384 6;
    HMAC_SHA2_512 7;
    AES128_CMAC 8;
}

registry! {
    /// Integrity algorithms, transform type 3.
    IntegId(u16), prefix "AUTH_", otherwise "integrity algorithm";
    NONE 0 = "NONE";
    HMAC_MD5_96 1;
    HMAC_SHA1_96 2;
    DES_MAC 3;
    KPDK_MD5 4;
    AES_XCBC_96 5;
    HMAC_MD5_128 6;
    HMAC_SHA1_160 7;
    AES_CMAC_96 8;
    AES_128_GMAC 9;
    AES_192_GMAC 10;
    AES_256_GMAC 11;
    HMAC_SHA2_256_128 12;
    HMAC_SHA2_384_192 13;
    HMAC_SHA2_512_256 14;
}

registry! {
    /// Key exchange methods, transform types 4 and 6 to 12 (RFC 9370 renamed the Diffie-Hellman groups).
    KeMethod(u16), prefix "", otherwise "key exchange method";
    NONE 0;
    MODP_768 1;
    MODP_1024 2;
    MODP_1536 5;
    MODP_2048 14;
    MODP_3072 15;
    MODP_4096 16;
    MODP_6144 17;
    MODP_8192 18;
    ECP_256 19;
    ECP_384 20;
    ECP_521 21;
    MODP_1024_160 22;
    MODP_2048_224 23;
    MODP_2048_256 24;
    ECP_192 25;
    ECP_224 26;
    BRAINPOOL_P224R1 27;
    BRAINPOOL_P256R1 28;
    BRAINPOOL_P384R1 29;
    BRAINPOOL_P512R1 30;
    CURVE25519 31;
    CURVE448 32;
    ML_KEM_512 35;
    ML_KEM_768 36;
    ML_KEM_1024 37;
}

registry! {
    /// Sequence number modes, transform type 5.
    EsnId(u16), prefix "", otherwise "sequence numbers";
    NO_ESN 0 = "no extended sequence numbers";
    ESN 1 = "extended sequence numbers";
}

registry! {
    /// Identification types (RFC 7296, section 3.5).
    IdType(u8), prefix "ID_", otherwise "identification type";
    IPV4_ADDR 1;
    FQDN 2;
    RFC822_ADDR 3;
    IPV6_ADDR 5;
    DER_ASN1_DN 9;
    DER_ASN1_GN 10;
    KEY_ID 11;
    NULL 13;
}

registry! {
    /// Certificate encodings (RFC 7296, section 3.6).
    CertEncoding(u8), prefix "", otherwise "certificate encoding";
    PKCS7 1 = "PKCS #7 wrapped X.509 certificate";
    PGP 2 = "PGP certificate";
    DNS_SIGNED_KEY 3 = "DNS signed key";
    X509_SIGNATURE 4 = "X.509 certificate - signature";
    KERBEROS_TOKEN 6 = "Kerberos token";
    CRL 7 = "certificate revocation list";
    ARL 8 = "authority revocation list";
    SPKI 9 = "SPKI certificate";
    X509_ATTRIBUTE 10 = "X.509 certificate - attribute";
    RAW_RSA_KEY 11 = "raw RSA key";
    HASH_AND_URL_CERT 12 = "hash and URL of X.509 certificate";
    HASH_AND_URL_BUNDLE 13 = "hash and URL of X.509 bundle";
    OCSP_CONTENT 14 = "OCSP content";
    RAW_PUBLIC_KEY 15 = "raw public key";
}

registry! {
    /// Authentication methods (RFC 7296, section 3.8).
    AuthMethod(u8), prefix "", otherwise "authentication method";
    RSA_SIGNATURE 1 = "RSA digital signature";
    SHARED_KEY_MIC 2 = "shared key message integrity code";
    DSS_SIGNATURE 3 = "DSS digital signature";
    ECDSA_P256_SHA256 9 = "ECDSA with SHA-256 on the P-256 curve";
    ECDSA_P384_SHA384 10 = "ECDSA with SHA-384 on the P-384 curve";
    ECDSA_P521_SHA512 11 = "ECDSA with SHA-512 on the P-521 curve";
    GENERIC_SECURE_PASSWORD 12 = "generic secure password";
    NULL 13 = "NULL authentication";
    DIGITAL_SIGNATURE 14 = "digital signature";
}

registry! {
    /// Hash algorithms of SIGNATURE_HASH_ALGORITHMS (RFC 7427, section 7).
    HashAlgorithm(u16), prefix "", otherwise "hash algorithm";
    SHA1 1;
    SHA2_256 2;
    SHA2_384 3;
    SHA2_512 4;
    IDENTITY 5 = "Identity";
}

registry! {
    /// Traffic selector types (RFC 7296, section 3.13.1).
    TsType(u8), prefix "TS_", otherwise "traffic selector type";
    IPV4_ADDR_RANGE 7;
    IPV6_ADDR_RANGE 8;
    FC_ADDR_RANGE 9;
    SECLABEL 10;
}

registry! {
    /// Configuration payload types (RFC 7296, section 3.15).
    CfgType(u8), prefix "CFG_", otherwise "configuration type";
    REQUEST 1;
    REPLY 2;
    SET 3;
    ACK 4;
}

registry! {
    /// Configuration attributes (RFC 7296, section 3.15.1): 15 bits.
    CfgAttr(u16), prefix "", otherwise "configuration attribute";
    INTERNAL_IP4_ADDRESS 1;
    INTERNAL_IP4_NETMASK 2;
    INTERNAL_IP4_DNS 3;
    INTERNAL_IP4_NBNS 4;
    INTERNAL_IP4_DHCP 6;
    APPLICATION_VERSION 7;
    INTERNAL_IP6_ADDRESS 8;
    INTERNAL_IP6_DNS 10;
    INTERNAL_IP6_DHCP 12;
    INTERNAL_IP4_SUBNET 13;
    SUPPORTED_ATTRIBUTES 14;
    INTERNAL_IP6_SUBNET 15;
    INTERNAL_IP6_LINK 17;
    INTERNAL_IP6_PREFIX 18;
    INTERNAL_DNS_DOMAIN 25;
    INTERNAL_DNSSEC_TA 26;
    ENCDNS_IP4 27;
    ENCDNS_IP6 28;
    ENCDNS_DIGEST_INFO 29;
    INTERNAL_IP4_SERVER 23456;
    INTERNAL_IP6_SERVER 23457;
}

registry! {
    /// EAP packet codes (RFC 3748, section 4).
    EapCode(u8), prefix "", otherwise "EAP code";
    REQUEST 1 = "EAP-Request";
    RESPONSE 2 = "EAP-Response";
    SUCCESS 3 = "EAP-Success";
    FAILURE 4 = "EAP-Failure";
}

registry! {
    /// EAP method types (RFC 3748, section 5).
    EapType(u8), prefix "EAP-", otherwise "EAP method";
    IDENTITY 1 = "EAP-Identity";
    NOTIFICATION 2 = "EAP-Notification";
    NAK 3 = "EAP-Nak";
    MD5_CHALLENGE 4 = "EAP-MD5";
    OTP 5;
    GTC 6;
    TLS 13;
    LEAP 17;
    SIM 18;
    TTLS 21;
    AKA 23;
    PEAP 25;
    MSCHAPV2 26 = "EAP-MSCHAPv2";
    TLV 33;
    FAST 43;
    PSK 47;
    IKEV2 49 = "EAP-IKEv2";
    AKA_PRIME 50 = "EAP-AKA'";
    GPSK 51;
    PWD 52 = "EAP-pwd";
    TEAP 55;
    EXPANDED 254 = "EAP-Expanded";
    EXPERIMENTAL 255 = "EAP-Experimental";
}

registry! {
    /// Notify message types (RFC 7296, section 3.10.1).
    NotifyType(u16), prefix "", otherwise "notify";
    UNSUPPORTED_CRITICAL_PAYLOAD 1;
    INVALID_IKE_SPI 4;
    INVALID_MAJOR_VERSION 5;
    INVALID_SYNTAX 7;
    INVALID_MESSAGE_ID 9;
    INVALID_SPI 11;
    NO_PROPOSAL_CHOSEN 14;
    INVALID_KE_PAYLOAD 17;
    AUTHENTICATION_FAILED 24;
    SINGLE_PAIR_REQUIRED 34;
    NO_ADDITIONAL_SAS 35;
    INTERNAL_ADDRESS_FAILURE 36;
    FAILED_CP_REQUIRED 37;
    TS_UNACCEPTABLE 38;
    INVALID_SELECTORS 39;
    UNACCEPTABLE_ADDRESSES 40;
    UNEXPECTED_NAT_DETECTED 41;
    TEMPORARY_FAILURE 43;
    CHILD_SA_NOT_FOUND 44;
    INVALID_GROUP_ID 45;
    AUTHORIZATION_FAILED 46;
    STATE_NOT_FOUND 47;
    TS_MAX_QUEUE 48;
    MS_STATUS 12345;
    INITIAL_CONTACT 16384;
    SET_WINDOW_SIZE 16385;
    ADDITIONAL_TS_POSSIBLE 16386;
    IPCOMP_SUPPORTED 16387;
    NAT_DETECTION_SOURCE_IP 16388;
    NAT_DETECTION_DESTINATION_IP 16389;
    COOKIE 16390;
    USE_TRANSPORT_MODE 16391;
    HTTP_CERT_LOOKUP_SUPPORTED 16392;
    REKEY_SA 16393;
    ESP_TFC_PADDING_NOT_SUPPORTED 16394;
    NON_FIRST_FRAGMENTS_ALSO 16395;
    MOBIKE_SUPPORTED 16396;
    ADDITIONAL_IP4_ADDRESS 16397;
    ADDITIONAL_IP6_ADDRESS 16398;
    NO_ADDITIONAL_ADDRESSES 16399;
    UPDATE_SA_ADDRESSES 16400;
    COOKIE2 16401;
    NO_NATS_ALLOWED 16402;
    AUTH_LIFETIME 16403;
    MULTIPLE_AUTH_SUPPORTED 16404;
    ANOTHER_AUTH_FOLLOWS 16405;
    REDIRECT_SUPPORTED 16406;
    REDIRECT 16407;
    REDIRECTED_FROM 16408;
    TICKET_LT_OPAQUE 16409;
    TICKET_REQUEST 16410;
    TICKET_ACK 16411;
    TICKET_NACK 16412;
    TICKET_OPAQUE 16413;
    EAP_ONLY_AUTHENTICATION 16417;
    CHILDLESS_IKEV2_SUPPORTED 16418;
    QUICK_CRASH_DETECTION 16419;
    IKEV2_MESSAGE_ID_SYNC_SUPPORTED 16420;
    IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED 16421;
    IKEV2_MESSAGE_ID_SYNC 16422;
    IPSEC_REPLAY_COUNTER_SYNC 16423;
    ERX_SUPPORTED 16427;
    IKEV2_FRAGMENTATION_SUPPORTED 16430;
    SIGNATURE_HASH_ALGORITHMS 16431;
    PUZZLE 16434;
    USE_PPK 16435;
    PPK_IDENTITY 16436;
    NO_PPK_AUTH 16437;
    INTERMEDIATE_EXCHANGE_SUPPORTED 16438;
    IP4_ALLOWED 16439;
    IP6_ALLOWED 16440;
    ADDITIONAL_KEY_EXCHANGE 16441;
    USE_AGGFRAG 16442;
    SUPPORTED_AUTH_METHODS 16443;
    SA_RESOURCE_INFO 16444;
    USE_PPK_INT 16445;
    PPK_IDENTITY_KEY 16446;
}

impl NotifyType {
    /// Whether this reports an error: the types below 16384. An unknown error in a response ends the exchange; an
    /// unknown status is ignored (RFC 7296, section 3.10.1).
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 < Self::INITIAL_CONTACT.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_are_named() {
        assert_eq!(
            NotifyType::NO_PROPOSAL_CHOSEN.to_string(),
            "NO_PROPOSAL_CHOSEN (14)"
        );
        assert_eq!(
            format!("{:?}", NotifyType(16389)),
            "NAT_DETECTION_DESTINATION_IP (16389)"
        );
        assert_eq!(EncrId(20).to_string(), "ENCR_AES_GCM_16 (20)");
        assert_eq!(EncrId::TRIPLE_DES.to_string(), "ENCR_3DES (3)");
        assert_eq!(IntegId(12).to_string(), "AUTH_HMAC_SHA2_256_128 (12)");
        assert_eq!(PayloadType(35).to_string(), "IDi (35)");
        assert_eq!(EapType::MSCHAPV2.to_string(), "EAP-MSCHAPv2 (26)");
        assert_eq!(EapType(13).to_string(), "EAP-TLS (13)");
        assert_eq!(TsType(7).to_string(), "TS_IPV4_ADDR_RANGE (7)");
    }

    #[test]
    fn unknown_numbers_keep_their_number() {
        assert_eq!(NotifyType(40001).to_string(), "notify 40001");
        assert_eq!(format!("{:?}", PayloadType(13)), "payload 13");
        assert_eq!(KeMethod(1025).to_string(), "key exchange method 1025");
        assert_eq!(NotifyType(40001).name(), None);
    }

    #[test]
    fn errors_end_at_16383() {
        assert!(NotifyType(16383).is_error());
        assert!(!NotifyType(16384).is_error());
    }
}
