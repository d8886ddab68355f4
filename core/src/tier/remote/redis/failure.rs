//! What went wrong, by kind, in words that name the remedy and never a password.

use std::io;
use std::time::{Duration, Instant};

use redis::{ErrorKind, RedisError};
use rustls::{AlertDescription, CertificateError};

use super::protocol::ReadError;
use crate::tier::remote::values::{Answer, Failure, ValuesError};

/// How much is repeated of what a server said.
const LONGEST_SAYING: usize = 200;

/// An error with the remedy that its kind has.
pub(super) fn failed(failure: Failure, message: impl Into<String>) -> ValuesError {
    let hint = match failure {
        Failure::Auth => "; check user, password and what the user may do",
        Failure::Redirect => "; this is a cluster, open the store with remote_cluster",
        Failure::OutOfMemory => "; give the server more maxmemory, or an eviction policy",
        Failure::Protocol => "; is this a Redis or Valkey server?",
        Failure::Timeout => "; it did not answer in time",
        _ => "",
    };
    ValuesError::new(failure, message.into() + hint)
}

/// The time until `by`.
pub(super) fn left(by: Instant) -> Answer<Duration> {
    let left = by.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(failed(Failure::Timeout, "the time was over"));
    }
    Ok(left)
}

/// An error that a server answered with.
pub(super) fn said(line: &[u8]) -> ValuesError {
    let code = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    failed(of_code(&String::from_utf8_lossy(code)), saying(line))
}

/// What a server said, as it can stand in a log.
pub(super) fn saying(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let plain = text
        .chars()
        .map(|each| if each.is_control() { ' ' } else { each });
    plain.take(LONGEST_SAYING).collect()
}

fn of_code(code: &str) -> Failure {
    match code {
        "WRONGTYPE" => Failure::WrongType,
        "OOM" => Failure::OutOfMemory,
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => Failure::Auth,
        "MOVED" | "ASK" => Failure::Redirect,
        _ => Failure::Other,
    }
}

/// An error of the connection itself.
pub(super) fn of_io(error: &io::Error) -> ValuesError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    if let Some(tls) = inner {
        return of_tls(tls);
    }
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            failed(Failure::Timeout, "no answer")
        }
        _ => failed(Failure::Refused, error.to_string()),
    }
}

pub(super) fn of_reading(error: ReadError) -> ValuesError {
    match error {
        ReadError::Io(error) => of_io(&error),
        ReadError::Malformed(what) => failed(Failure::Protocol, what),
    }
}

/// Who is not trusted is refused as with a wrong password.
fn of_tls(error: &rustls::Error) -> ValuesError {
    let hint = match error {
        // Two authorities may have one name.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            "its certificate is not signed by an authority that is trusted here; give the right remote_ca_file"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "use a host name in the URL that its certificate has",
        rustls::Error::InvalidCertificate(_) => "its certificate cannot be used",
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => {
            "it wants a certificate that it trusts; give remote_certificate_file and remote_private_key_file"
        }
        _ => {
            let message = format!("TLS: {error}; does it speak TLS at this port?");
            return ValuesError::new(Failure::Protocol, message);
        }
    };
    ValuesError::new(Failure::Auth, format!("TLS: {error}; {hint}"))
}

/// An error of the crate that speaks to clusters.
pub(super) fn of_crate(error: &RedisError) -> ValuesError {
    if error.is_timeout() {
        return failed(Failure::Timeout, error.to_string());
    }
    let code = error.code().map(str::to_owned).or_else(|| {
        let errors = error.clone().into_server_errors()?;
        errors.first().map(|(_, error)| error.code().to_owned())
    });
    let of_code = code.as_deref().map_or(Failure::Other, of_code);
    let failure = match (of_code, error.kind()) {
        (Failure::Other, ErrorKind::AuthenticationFailed) => Failure::Auth,
        (Failure::Other, ErrorKind::Parse | ErrorKind::UnexpectedReturnType) => Failure::Protocol,
        (Failure::Other, ErrorKind::Io) => Failure::Refused,
        (failure, _) => failure,
    };
    failed(failure, error.to_string())
}
