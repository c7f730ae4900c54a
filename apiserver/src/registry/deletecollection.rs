//! `deletecollection`: deletes every object of a collection that the selectors match, one after another.

use super::{Call, Target, delete, form, list};
use crate::http::{Answer, respond};
use serde_json::json;

/// DELETE of a collection; answers with the list of what was deleted, as upstream.
///
/// # Errors
/// Every refusal; objects that go away meanwhile are no error.
pub async fn deletecollection(call: &Call, body: &[u8]) -> Answer {
    let mut options = delete::delete_options(call, body)?;
    // Preconditions are of one object.
    options.precondition_uid = None;
    options.precondition_resource_version = None;
    let page = list::select(call)?;
    let mut items = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let item = form::value_of(&call.app, &call.row, entry)?;
        let name = super::meta::text(&item, "name").to_string();
        let namespace = super::meta::text(&item, "namespace").to_string();
        let target = Target {
            namespace: &namespace,
            name: &name,
            dry_run: options.dry_run,
            ..call.target()
        };
        match delete::delete_object(&target, &options).await {
            Ok(_) => {
                let mut item = item;
                if let Some(m) = item.as_object_mut() {
                    m.shift_remove("kind");
                    m.shift_remove("apiVersion");
                }
                items.push(item);
            }
            Err(e) if e.code == 404 => {}
            Err(e) => return Err(e),
        }
    }
    let list = json!({
        "kind": format!("{}List", call.row.kind),
        "apiVersion": call.row.api_version(),
        "metadata": {"resourceVersion": page.revision.to_string()},
        "items": items,
    });
    Ok(respond::value(200, call.accept, &list))
}
