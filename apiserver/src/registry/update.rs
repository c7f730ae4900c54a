//! `update`: PUT of an object or a subresource of its own kind, and the one way in which any stored object is changed
//! ([`update_object`]: read, change, check, compare and write, again on conflict).

use super::table::Row;
use super::{Call, Target, Written, create, encode, form, input, meta};
use crate::http::Answer;
use crate::store::{Entry, Expect};
use crate::{Operation, Write, admission, special};
use serde_json::Value;
use skiff_api::field::FieldError;
use skiff_api::inert;
use skiff_api::patch::apply;
use skiff_api::schema;
use skiff_api::status::Status;
use std::sync::Arc;

/// How often a change without a resourceVersion is tried again when others write at the same time.
const ATTEMPTS: usize = 32;

/// What upstream answers when a resourceVersion is not the current one.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// PUT.
///
/// # Errors
/// Every refusal of the request.
pub async fn update(call: &Call, body: &[u8]) -> Answer {
    let (object, mut warnings) = input::object(call, body)?;
    meta::check_name(&call.row, &object, &call.name, &call.namespace)?;
    let target = call.target();
    if call.subresource.is_empty()
        && call.row.strategy.allow_create_on_update
        && target.app.store.get(&call.key()).is_none()
    {
        let rv = meta::text(&object, "resourceVersion");
        if !rv.is_empty() && rv != "0" {
            // It was there when the client read it.
            return Err(call.not_found());
        }
        create::may_create(call).await?;
        let mut object = object;
        meta::drop_managed_fields(&mut object);
        meta::match_namespace(&call.row, &mut object, &call.namespace)?;
        let written = create::create_object(&target, object, &mut warnings).await?;
        return written.answer(call, 201, &warnings);
    }
    let given = meta::text(&object, "resourceVersion").to_string();
    let explicit = !given.is_empty() && given != "0";
    let written = update_object_as(
        &target,
        Some(&call.manager()),
        &mut warnings,
        explicit,
        |_| Ok(object.clone()),
    )
    .await?;
    written.answer(call, 200, &warnings)
}

fn conflict(target: &Target<'_>, why: &str) -> Status {
    Status::conflict(&target.row.group, &target.row.plural, target.name, why)
}

/// Changes a stored object. `change` gets the current object (this row's version, resourceVersion included) and gives the
/// new one; it is called again when somebody else wrote in between, unless `explicit` says that the caller named a
/// resourceVersion. Strategy, admission and validation run on the result.
///
/// # Errors
/// 404, 409, 422, and what `change` and admission say.
pub async fn update_object(
    target: &Target<'_>,
    warnings: &mut Vec<String>,
    explicit: bool,
    change: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<Written, Status> {
    update_object_as(target, None, warnings, explicit, change).await
}

/// The same; `manager` is who owns the fields that change (None: managedFields are as `change` gives them).
///
/// # Errors
/// As [`update_object`].
pub async fn update_object_as(
    target: &Target<'_>,
    manager: Option<&str>,
    warnings: &mut Vec<String>,
    explicit: bool,
    mut change: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<Written, Status> {
    let row = target.row;
    let key = row.key(target.namespace, target.name);
    let before = warnings.len();
    for _ in 0..ATTEMPTS {
        warnings.truncate(before);
        let entry = target
            .app
            .store
            .get(&key)
            .ok_or_else(|| Status::not_found(&row.group, &row.plural, target.name))?;
        match attempt(target, manager, &key, &entry, warnings, &mut change).await? {
            Some(written) => return Ok(written),
            None if explicit => return Err(conflict(target, MODIFIED)),
            None => {}
        }
    }
    Err(conflict(target, MODIFIED))
}

/// Top-level fields that an endpoint does not write, so that nobody comes to own them through it.
pub fn ignored(row: &Row, subresource: &str) -> &'static [&'static str] {
    match subresource {
        "status" => &["spec"],
        "" if row.subresource("status").is_some() => &["status"],
        _ => &[],
    }
}

/// One attempt; None when somebody else wrote first.
async fn attempt(
    target: &Target<'_>,
    manager: Option<&str>,
    key: &str,
    entry: &Arc<Entry>,
    warnings: &mut Vec<String>,
    change: &mut impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<Option<Written>, Status> {
    let row = target.row;
    let current = form::value_of(target.app, row, entry)?;
    let object = change(&current)?;
    let given = meta::text(&object, "resourceVersion");
    if given.is_empty() || given == "0" {
        if !row.strategy.allow_unconditional_update {
            let e = FieldError::invalid(
                "metadata.resourceVersion",
                0,
                "must be specified for an update",
            );
            return Err(Status::invalid(&row.group, &row.kind, target.name, &[e]));
        }
    } else {
        match given.parse::<u64>() {
            Ok(rv) if rv == entry.revision => {}
            Ok(_) => return Err(conflict(target, MODIFIED)),
            Err(_) => {
                let e = FieldError::invalid(
                    "metadata.resourceVersion",
                    given,
                    "must be the resourceVersion of an object, as the server gave it",
                );
                return Err(Status::invalid(&row.group, &row.kind, target.name, &[e]));
            }
        }
    }
    let (uid, old_uid) = (meta::text(&object, "uid"), meta::text(&current, "uid"));
    if !uid.is_empty() && uid != old_uid {
        return Err(conflict(
            target,
            &format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
            ),
        ));
    }
    let old = current;
    let mut write = Write {
        operation: Operation::Update,
        row,
        subresource: target.subresource,
        namespace: target.namespace,
        name: target.name,
        object,
        old: Some(old),
        user: target.user,
        dry_run: target.dry_run,
    };
    admission::mutate(target.app, &mut write, warnings).await?;
    let old = write.old.take().unwrap_or_default();
    meta::before_update(&mut write.object, &old)?;
    let context = target.context();
    match target.subresource {
        "" | "scale" => (row.strategy.prepare_update)(&context, &mut write.object, &old),
        "status" => (row.strategy.prepare_status_update)(&context, &mut write.object, &old),
        // finalize, ephemeralcontainers, resize: only the named part is taken from the new object.
        other => super::partial::prepare(other, &mut write.object, &old),
    }
    if let Some(manager) = manager {
        if meta::has_managed_fields(&old) {
            let request = apply::Request {
                manager,
                api_version: &row.api_version(),
                subresource: target.subresource,
                now: &context.now,
                ignored: ignored(row, target.subresource),
            };
            apply::track_update(&old, &mut write.object, schema::find(&row.schema), &request);
        } else {
            meta::drop_managed_fields(&mut write.object);
        }
    }
    // A status may bring annotations along (the deployment controller writes its revision so): that is no change of
    // what is wanted.
    if target.subresource != "status" {
        meta::count_generation(row, &mut write.object, &old);
    }
    write.old = Some(old);
    let _reservation = special::reserve(target.app, &mut write).await?;
    let old = write.old.take().unwrap_or_default();
    let errors = match target.subresource {
        "" | "scale" => input::validate(row, &write.object, Some(&old)),
        "status" => input::validate_metadata(row, &write.object, Some(&old)),
        other => {
            let mut e = super::partial::validate(other, &write.object, &old);
            e.extend(input::validate_metadata(row, &write.object, Some(&old)));
            e
        }
    };
    if !errors.is_empty() {
        return Err(Status::invalid(&row.group, &row.kind, target.name, &errors));
    }
    write.old = Some(old);
    admission::validate(target.app, &write, warnings).await?;
    let old = write.old.take().unwrap_or_default();
    let mut object = write.object;
    if target.subresource.is_empty() {
        warnings.extend((row.strategy.warnings)(&object));
        warnings.extend(inert::warnings(row, &object));
    }
    let same = object == old;
    let gone = meta::delete_during_update(row, &object, &old);
    let shown = target.dry_run.then(|| object.clone());
    let bytes = if gone || same {
        None
    } else {
        encode::to_stored(target.app, row, &mut object)?;
        Some(encode::bounded(row, &object, entry.value.len())?)
    };
    if let Some(object) = shown {
        return Ok(Some(Written::Dry(object)));
    }
    if gone {
        return match target
            .app
            .store
            .write(key.to_string(), Expect::Revision(entry.revision), None)
            .await
        {
            Ok(last) => Ok(Some(Written::Deleted(last))),
            Err(e) if e.is_conflict() => Ok(None),
            Err(e) => Err(e.status()),
        };
    }
    let Some(bytes) = bytes else {
        // Upstream: an update that changes nothing is no write; the resourceVersion stays.
        return Ok(Some(Written::Stored(entry.clone())));
    };
    match target
        .app
        .store
        .write(
            key.to_string(),
            Expect::Revision(entry.revision),
            Some(bytes),
        )
        .await
    {
        Ok(entry) => Ok(Some(Written::Stored(entry))),
        Err(e) if e.is_conflict() => Ok(None),
        Err(e) => Err(e.status()),
    }
}
