//! `deletecollection`: deletes every object of a collection that the selectors match, one after another.

use super::{Call, Target, delete, encode, form, list};
use crate::http::{Answer, respond};
use crate::store::Entry;
use serde_json::json;
use skiff_api::status::Status;
use std::sync::Arc;

/// DELETE of a collection; answers with the list of what was deleted, as upstream. Preconditions are asked of each object.
///
/// # Errors
/// Every refusal; objects that go away meanwhile are no error.
pub async fn deletecollection(call: &Call, body: &[u8]) -> Answer {
    let options = delete::delete_options(call, body)?;
    let page = list::select(call)?;
    // The stored bytes are kept for the answer, not the decoded objects: there may be many.
    let mut deleted: Vec<&Arc<Entry>> = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let target = Target {
            namespace: entry.namespace(),
            name: entry.name(),
            dry_run: options.dry_run,
            ..call.target()
        };
        match delete::delete_object(&target, &options).await {
            Ok(_) => deleted.push(entry),
            Err(e) if e.code == 404 => {}
            Err(e) => return Err(e),
        }
    }
    let items: Result<Vec<Vec<u8>>, Status> = deleted
        .into_iter()
        .map(|entry| {
            if call.row.stored {
                return Ok(entry.value.to_vec());
            }
            let mut v = form::value_of(&call.app, &call.row, entry)?;
            if let Some(m) = v.as_object_mut() {
                m.shift_remove("kind");
                m.shift_remove("apiVersion");
            }
            encode::json(&v)
        })
        .collect();
    let mut out = json!({
        "kind": format!("{}List", call.row.kind),
        "apiVersion": call.row.api_version(),
        "metadata": {"resourceVersion": page.revision.to_string()},
    })
    .to_string();
    out.pop();
    let mut out = out.into_bytes();
    out.extend_from_slice(b",\"items\":[");
    out.extend_from_slice(&items?.join(&b','));
    out.extend_from_slice(b"]}");
    Ok(respond::json_bytes(200, call.accept, out.into()))
}
