//! Where a server is: what its URL says, and what it is called without its password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use crate::error::{Error, Result};

/// What a URL says.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo> {
    let refuse = |why: String| Error::Config {
        name: "remote",
        value: without_password(url),
        remedy: format!(
            "{why}; write redis://[user:password@]host[:port][/database], rediss:// for TLS, or redis+unix:///path"
        ),
    };
    let info = url
        .into_connection_info()
        .map_err(|error| refuse(error.to_string()))?;
    if let ConnectionAddr::TcpTls { insecure: true, .. } = info.addr() {
        return Err(refuse(
            "TLS without a check of the certificate protects nothing".to_owned(),
        ));
    }
    let settings = info.redis_settings().clone();
    let settings = settings
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// The name of a server: where it is, and which of its databases.
pub(super) fn address(info: &ConnectionInfo) -> String {
    match info.redis_settings().db() {
        0 => info.addr().to_string(),
        database => format!("{}/{database}", info.addr()),
    }
}

/// A URL without user and password.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split_once('?').map_or(place, |(place, _)| place);
    if scheme.is_empty() {
        place.to_owned()
    } else {
        format!("{scheme}://{place}")
    }
}
