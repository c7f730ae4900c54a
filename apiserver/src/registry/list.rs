//! `list`: a collection, whole or in pages. Items are the stored bytes; nothing is decoded unless another form is asked for.

use super::select::Selector;
use super::{Call, form};
use crate::App;
use crate::http::negotiate::{Encoding, Form};
use crate::http::{Answer, body::Chunks, respond};
use crate::store::{Entry, Error as StoreError, Range};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::status::Status;
use std::collections::VecDeque;
use std::sync::Arc;

/// Entries that were selected.
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// The revision they are of.
    pub revision: u64,
    /// Token of the next page; empty when this is the last.
    pub next: String,
    /// How many follow; None when a selector makes that unknown, or nothing follows.
    pub remaining: Option<usize>,
}

/// A resourceVersion parameter: None when absent, else the number.
///
/// # Errors
/// 400 when it is none.
pub fn resource_version(v: Option<&str>) -> Result<Option<u64>, Status> {
    match v {
        None | Some("") => Ok(None),
        Some(s) => s.parse().map(Some).map_err(|_| {
            Status::bad_request(format!(
                "Invalid value: {s:?}: resourceVersion must be a number that the server gave"
            ))
        }),
    }
}

/// Refuses a resourceVersion of the future.
///
/// # Errors
/// 400 when it is no number, 504 when the store is not there yet.
pub fn at_least(app: &App, rv: &str) -> Result<(), Status> {
    let Some(wanted) = resource_version(Some(rv))? else {
        return Ok(());
    };
    let current = app.store.revision();
    if wanted <= current {
        return Ok(());
    }
    let mut s = Status::new(
        504,
        "Timeout",
        format!("Too large resource version: {wanted}, current: {current}"),
    );
    s.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    Err(s)
}

/// The token of a next page (storage.EncodeContinue): version, revision, and where to go on below the prefix.
fn encode_continue(revision: i64, after: &str) -> String {
    let v = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{after}\u{0}")});
    URL_SAFE_NO_PAD.encode(v.to_string())
}

/// Revision (-1: the current one) and start below the prefix.
fn decode_continue(token: &str) -> Result<(i64, String), Status> {
    let bad = || {
        Status::bad_request("continue key is not valid: it is not a token that this server gave")
    };
    let bytes = URL_SAFE_NO_PAD
        .decode(token.trim_end_matches('='))
        .or_else(|_| STANDARD.decode(token))
        .map_err(|_| bad())?;
    let v: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let start = v["start"].as_str().unwrap_or("");
    match (v["v"].as_str(), v["rv"].as_i64()) {
        (Some("meta.k8s.io/v1"), Some(rv))
            if rv != 0 && !start.is_empty() && !start.starts_with('/') && !start.contains("..") =>
        {
            // The trailing NUL says "after this key" where ranges begin with a key.
            Ok((rv, start.trim_end_matches('\u{0}').to_string()))
        }
        _ => Err(bad()),
    }
}

/// Reads what the request selects.
///
/// # Errors
/// 400, 410, 422, 504.
pub fn select(call: &Call) -> Result<Page, Status> {
    let o = &call.options;
    o.check_list(false)?;
    let selector = Selector::parse(call)?;
    let store = &call.app.store;
    let prefix = call.row.collection(&call.namespace);
    let mut after = String::new();
    let revision;
    if o.continue_token.is_empty() {
        let given = resource_version(o.resource_version.as_deref())?;
        if let Some(rv) = &o.resource_version {
            at_least(&call.app, rv)?;
        }
        let exact = o.resource_version_match == "Exact"
            || (o.resource_version_match.is_empty() && o.limit > 0);
        revision = given.filter(|r| *r > 0 && exact);
    } else {
        if o.resource_version.as_deref().is_some_and(|v| v != "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (rv, start) = decode_continue(&o.continue_token)?;
        after = start;
        revision = u64::try_from(rv).ok();
    }
    if let Some(name) = selector.exact_name(&call.namespace, call.row.namespaced())
        && revision.is_none()
        && o.continue_token.is_empty()
    {
        // A list of one name (kubectl get NAME -w, informers of one object) is a look-up.
        let revision = store.revision();
        let found = store
            .get(&format!("{prefix}{name}"))
            .filter(|e| selector.matches(e));
        return Ok(Page {
            entries: found.into_iter().collect(),
            revision,
            next: String::new(),
            remaining: None,
        });
    }
    let start_after = if after.is_empty() {
        String::new()
    } else {
        format!("{prefix}{after}")
    };
    let everything = selector.is_everything();
    let filter = |e: &Entry| selector.matches(e);
    let range = Range {
        prefix: &prefix,
        start_after: &start_after,
        limit: o.limit,
        revision,
        filter: if everything { None } else { Some(&filter) },
    };
    let page = match store.range(&range) {
        Ok(p) => p,
        Err(StoreError::Compacted { .. }) if !after.is_empty() => return Err(gone(&after)),
        Err(e) => return Err(e.status()),
    };
    let next = match page.entries.last() {
        Some(last) if page.more => encode_continue(
            i64::try_from(page.revision).unwrap_or(-1),
            last.key.get(prefix.len()..).unwrap_or(""),
        ),
        _ => String::new(),
    };
    // Upstream: the rest is not counted when a selector would have to be asked.
    let remaining = (page.more && everything).then_some(page.remaining);
    Ok(Page {
        entries: page.entries,
        revision: page.revision,
        next,
        remaining,
    })
}

/// 410 of a continue token whose revision is compacted, with a fresh token for those who accept an inconsistent rest.
fn gone(after: &str) -> Status {
    let mut s = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    s.continue_token = encode_continue(-1, after);
    s
}

/// GET of a collection.
///
/// # Errors
/// 400, 410, 422, 504; 500 when the store is damaged.
pub fn list(call: &Call) -> Answer {
    let page = select(call)?;
    if call.row.stored && call.accept.form == Form::Object && call.accept.encoding == Encoding::Json
    {
        return Ok(respond::bytes(
            200,
            "application/json",
            Body::new(plain(call, page)),
        ));
    }
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if !page.next.is_empty() {
        metadata["continue"] = page.next.into();
    }
    if let Some(n) = page.remaining {
        metadata["remainingItemCount"] = n.into();
    }
    let mut items = Vec::with_capacity(page.entries.len());
    for e in &page.entries {
        items.push(form::value_of(&call.app, &call.row, e)?);
    }
    let shown = match call.accept.form {
        Form::Table { v1beta1 } => form::table(
            &call.row,
            &items,
            metadata,
            v1beta1,
            &call.options.include_object,
            true,
        ),
        Form::Partial { v1beta1 } => form::partial_list(&items, metadata, v1beta1),
        Form::Object => {
            for v in &mut items {
                if let Some(m) = v.as_object_mut() {
                    m.shift_remove("kind");
                    m.shift_remove("apiVersion");
                }
            }
            json!({
                "kind": format!("{}List", call.row.kind),
                "apiVersion": call.row.api_version(),
                "metadata": metadata,
                "items": items,
            })
        }
    };
    Ok(respond::value(200, call.accept, &shown))
}

/// The stored bytes between commas.
fn plain(call: &Call, page: Page) -> Chunks {
    let mut chunks = VecDeque::with_capacity(page.entries.len() * 2 + 2);
    chunks.push_back(call.row.list_head.clone());
    let mut head = format!("\"metadata\":{{\"resourceVersion\":\"{}\"", page.revision);
    if !page.next.is_empty() {
        // Base64 needs no escapes.
        head.push_str(&format!(",\"continue\":\"{}\"", page.next));
    }
    if let Some(n) = page.remaining {
        head.push_str(&format!(",\"remainingItemCount\":{n}"));
    }
    head.push_str("},\"items\":[");
    chunks.push_back(head.into());
    for (i, e) in page.entries.iter().enumerate() {
        if i > 0 {
            chunks.push_back(Bytes::from_static(b","));
        }
        chunks.push_back(e.value.clone());
    }
    chunks.push_back(Bytes::from_static(b"]}"));
    Chunks::new(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were_made_and_others_are_refused() {
        let t = encode_continue(42, "ns/name");
        assert_eq!(decode_continue(&t), Ok((42, "ns/name".to_string())));
        for bad in ["", "zzz", "e30"] {
            assert_eq!(decode_continue(bad).map_err(|e| e.code), Err(400), "{bad}");
        }
    }
}
