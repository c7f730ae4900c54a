//! `delete`: one object, at once or in phases (grace, finalizers, namespaces).

use super::{Call, Target, add_seconds, encode, form, input, meta, now};
use crate::http::{Answer, respond};
use crate::registry::options::Options;
use crate::store::{self, Entry};
use crate::{Operation, Write, admission};
use serde_json::{Value, json};
use skiff_api::decode::{Also, Expect, Strictness};
use skiff_api::status::Status;
use std::sync::Arc;

/// DELETE.
///
/// # Errors
/// Every refusal of the request.
pub async fn delete(call: &Call, body: &[u8]) -> Answer {
    let options = delete_options(call, body)?;
    let mut target = call.target();
    target.dry_run = options.dry_run;
    let done = delete_object(&target, &options).await?;
    answer(call, &options, &done)
}

/// What the body of a DELETE is: every group has the kind.
fn expect() -> Expect<'static> {
    Expect::gvk("", "v1", "DeleteOptions").also(Also::Any)
}

/// The query's or the body's DeleteOptions, checked.
///
/// # Errors
/// 400, 415, 422.
pub fn delete_options(call: &Call, body: &[u8]) -> Result<Options, Status> {
    let mut options = call.options.clone();
    if !body.is_empty() {
        // Upstream reads them without looking for unknown fields.
        let (value, _) = input::typed(&call.headers, body, &expect(), Strictness::Ignore)?;
        options.merge_delete_body(&value)?;
    }
    options.check_delete()?;
    Ok(options)
}

/// What a delete did.
pub struct Deleted {
    /// The object's last state, or its state now that deletion has begun.
    pub entry: Arc<Entry>,
    /// The object as it would be, on a dry run that only begins deletion.
    pub dry: Option<Value>,
    /// True when it is gone; false when it waits for its grace or its finalizers.
    pub gone: bool,
    /// True when nothing changed because deletion had begun before.
    pub pending: bool,
}

fn answer(call: &Call, options: &Options, done: &Deleted) -> Answer {
    let row = &call.row;
    // Upstream: 202 when somebody asked for cascading with the old option and the object is still there.
    let code = if !done.gone && options.orphan_dependents == Some(false) {
        202
    } else {
        200
    };
    if let Some(v) = &done.dry {
        return form::value(call, code, v);
    }
    if meta::returns_object(row) || (!done.gone && !done.pending) {
        return call.object(code, &done.entry);
    }
    let v = encode::decode(row, &done.entry.value)?;
    let mut details = json!({"name": call.name});
    if !row.group.is_empty() {
        details["group"] = row.group.as_ref().into();
    }
    details["kind"] = row.plural.as_ref().into();
    details["uid"] = meta::text(&v, "uid").into();
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(respond::value(code, call.accept, &status))
}

/// Deletes an object or begins its deletion.
///
/// # Errors
/// 404, 409 (preconditions), what admission says.
pub async fn delete_object(target: &Target<'_>, options: &Options) -> Result<Deleted, Status> {
    let (app, row) = (target.app, target.row);
    let key = row.key(target.namespace, target.name);
    loop {
        let entry = app
            .store
            .get(&key)
            .ok_or_else(|| Status::not_found(&row.group, &row.plural, target.name))?;
        let old = form::value_of(app, row, &entry)?;
        meta::check_preconditions(row, &old, options, &entry.revision.to_string())?;
        let mut write = Write {
            operation: Operation::Delete,
            row,
            subresource: target.subresource,
            namespace: target.namespace,
            name: target.name,
            object: Value::Null,
            old: Some(old),
            user: target.user,
            dry_run: target.dry_run,
        };
        admission::mutate(app, &mut write, &mut Vec::new()).await?;
        admission::validate(app, &write, &mut Vec::new()).await?;
        let old = write.old.unwrap_or_default();
        let result = match meta::before_delete(row, &old, options, &now(), add_seconds) {
            meta::Deletion::Pending => {
                return Ok(Deleted {
                    entry,
                    dry: None,
                    gone: false,
                    pending: true,
                });
            }
            meta::Deletion::Now => {
                if target.dry_run {
                    return Ok(Deleted {
                        entry,
                        dry: None,
                        gone: true,
                        pending: false,
                    });
                }
                app.store
                    .write(key.clone(), store::Expect::Revision(entry.revision), None)
                    .await
                    .map(|entry| (entry, true))
            }
            meta::Deletion::Mark(mut new) => {
                if target.dry_run {
                    return Ok(Deleted {
                        entry,
                        dry: Some(new),
                        gone: false,
                        pending: false,
                    });
                }
                encode::to_stored(app, row, &mut new)?;
                // Whatever its size: what is there must be deletable.
                let bytes = encode::stored(&new)?;
                app.store
                    .write(
                        key.clone(),
                        store::Expect::Revision(entry.revision),
                        Some(bytes),
                    )
                    .await
                    .map(|entry| (entry, false))
            }
        };
        match result {
            Ok((entry, gone)) => {
                return Ok(Deleted {
                    entry,
                    dry: None,
                    gone,
                    pending: false,
                });
            }
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.status()),
        }
    }
}
