//! Values that profiles write as text.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Reads a duration such as `30s`, `4h` or `1h30m`: numbers with the units `s`, `m`, `h` and `d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("`{text}` is not a duration such as \"30s\", \"10m\", \"4h\" or \"1d\"");
    let mut seconds: u64 = 0;
    let mut number: Option<u64> = None;
    for character in text.chars() {
        if let Some(digit) = character.to_digit(10) {
            let grown = number
                .unwrap_or(0)
                .checked_mul(10)
                .and_then(|n| n.checked_add(digit.into()));
            number = Some(grown.ok_or_else(fault)?);
            continue;
        }
        let unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(fault()),
        };
        let part = number
            .take()
            .and_then(|n| n.checked_mul(unit))
            .ok_or_else(fault)?;
        seconds = seconds.checked_add(part).ok_or_else(fault)?;
    }
    if text.is_empty() || number.is_some() {
        return Err(fault());
    }
    Ok(Duration::from_secs(seconds))
}

/// A duration as [`duration`] reads it, in the largest units.
pub(super) fn duration_text(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds) in [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            text.push_str(&format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a network such as `10.0.0.0/8`, or an address, which is a network of one.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let Ok(network) = text.parse::<IpNet>() else {
        if text.contains('[') {
            return Err(format!(
                "`{text}`: protocols and ports cannot be selected by this version"
            ));
        }
        return Err(format!(
            "`{text}` is not a network such as \"10.0.0.0/8\" or \"fd00::/8\""
        ));
    };
    if network.trunc() != network {
        return Err(format!(
            "`{text}` has bits set beyond its prefix length; the network is `{}`, the one address is `{}`",
            network.trunc(),
            network.addr()
        ));
    }
    Ok(network)
}

/// Reads a host name into A-labels (RFC 5890, section 2.3.2.1), without a final dot.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let fault = || format!("`{text}` is not a host name");
    let name = text.strip_suffix('.').unwrap_or(text);
    let name = if name.is_ascii() {
        name.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(name).map_err(|_| fault())?
    };
    let sound = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_')
    };
    // A last label of digits alone is a mistyped IPv4 address (RFC 1123, section 2.1).
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|octet| octet.is_ascii_digit()));
    if name.len() > 253 || numeric || !name.split('.').all(sound) {
        return Err(fault());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, seconds) in [
            ("30s", 30),
            ("10m", 600),
            ("4h", 14400),
            ("1d", 86400),
            ("1h30m", 5400),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
            assert_eq!(duration_text(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration_text(Duration::ZERO), "0s");
        for wrong in [
            "",
            "30",
            "s",
            "4 h",
            "-1s",
            "1.5h",
            "99999999999999999999s",
            "999999999999999999d",
            "4w",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_are_read_strictly() {
        assert_eq!(
            network("10.0.0.0/8"),
            Ok(IpNet::V4("10.0.0.0/8".parse().unwrap()))
        );
        assert_eq!(network("::/0"), Ok(IpNet::V6("::/0".parse().unwrap())));
        assert_eq!(
            network("192.0.2.1").map(|n| n.to_string()),
            Ok("192.0.2.1/32".to_owned())
        );
        assert_eq!(
            network("fd00::1").map(|n| n.to_string()),
            Ok("fd00::1/128".to_owned())
        );
        assert!(
            network("10.1.2.3/8")
                .unwrap_err()
                .contains("the network is `10.0.0.0/8`")
        );
        assert!(network("10.0.0.0/8[tcp/80]").unwrap_err().contains("ports"));
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "vpn.example.org", "10.0.0.0/"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_names_become_a_labels() {
        assert_eq!(host_name("VPN.Example.org."), Ok("vpn.example.org".to_owned()));
        assert_eq!(
            host_name("bücher.example"),
            Ok("xn--bcher-kva.example".to_owned())
        );
        assert_eq!(host_name("gateway"), Ok("gateway".to_owned()));
        for wrong in [
            "",
            ".",
            "a..b",
            "-a.example",
            "a b",
            "vpn.example.org:500",
            "192.0.2.256",
            "https://x",
        ] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
        assert!(host_name(&"a".repeat(64)).is_err());
    }
}
