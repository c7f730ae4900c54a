//! Bearer tokens in the headers of a request: `Authorization: Bearer`, and the WebSocket subprotocol by which browsers send
//! one (upstream's k8s.io/apiserver/pkg/authentication/request/{bearertoken,websocket}). Owns the form; whose token it is
//! is decided elsewhere.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What a subprotocol that carries a token begins with.
const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of an `Authorization` header.
pub fn of_authorization(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The token among `Sec-WebSocket-Protocol` headers, in the order they came.
///
/// # Errors
/// More than one token, one that is not well encoded, or no other protocol beside it.
pub fn of_protocols<'a>(
    values: impl Iterator<Item = &'a str>,
) -> Result<Option<String>, &'static str> {
    let mut token = None;
    let mut others = false;
    for protocol in values.flat_map(|v| v.split(',')).map(str::trim) {
        let Some(encoded) = protocol.strip_prefix(PREFIX) else {
            others |= !protocol.is_empty();
            continue;
        };
        if token.is_some() {
            return Err("multiple bearer tokens in the subprotocols");
        }
        let decoded = URL_SAFE_NO_PAD
            .decode(encoded)
            .ok()
            .and_then(|b| String::from_utf8(b).ok())
            .filter(|t| !t.is_empty())
            .ok_or("a bearer token in the subprotocols that is not encoded as it has to be")?;
        token = Some(decoded);
    }
    if token.is_some() && !others {
        return Err("a bearer token is no protocol: another one is needed beside it");
    }
    Ok(token)
}

/// A `Sec-WebSocket-Protocol` header without tokens, for whom they do not concern; none when nothing is left.
pub fn without_tokens(value: &str) -> Option<String> {
    let left: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty() && !p.starts_with(PREFIX))
        .collect();
    (!left.is_empty()).then(|| left.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_in_two_headers() {
        assert_eq!(of_authorization("Bearer abc"), Some("abc"));
        assert_eq!(of_authorization("bearer  abc "), Some("abc"));
        for none in ["Basic abc", "Bearer", "Bearer ", "", "abc"] {
            assert_eq!(of_authorization(none), None, "{none}");
        }
        let of = |v: &[&str]| of_protocols(v.iter().copied());
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode("t0ken"));
        assert_eq!(
            of(&[&format!("v5.channel.k8s.io, {token}")]),
            Ok(Some("t0ken".into()))
        );
        assert_eq!(of(&["v5.channel.k8s.io", &token]), Ok(Some("t0ken".into())));
        assert_eq!(of(&["v5.channel.k8s.io"]), Ok(None));
        for bad in [
            token.clone(),
            format!("a, {token}, {token}"),
            format!("a, {PREFIX}"),
            format!("a, {PREFIX}!!"),
        ] {
            assert!(of(&[&bad]).is_err(), "{bad}");
        }
        assert_eq!(
            without_tokens(&format!("a,{token}, b")).as_deref(),
            Some("a, b")
        );
        assert_eq!(without_tokens(&token), None);
    }
}
