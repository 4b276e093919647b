//! The certification authorities that the operating system trusts.

use peregrine_core::pki::Certificate;

/// All that can be read.
///
/// # Errors
/// There is none, and why, as the second half of a sentence.
pub fn system() -> Result<Vec<Certificate>, String> {
    let found = rustls_native_certs::load_native_certs();
    let certificates: Vec<Certificate> = found
        .certs
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok())
        .collect();
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    let reason = found
        .errors
        .first()
        .map_or_else(|| "it is empty".to_owned(), ToString::to_string);
    Err(reason)
}
