//! `create`: POST of an object, and the same for callers inside the server (bootstrap, controllers of the server itself).

use super::{Call, Target, Written, encode, input, meta, now};
use crate::http::Answer;
use crate::http::path::RequestInfo;
use crate::store::Expect;
use crate::{Operation, Write, admission, special};
use serde_json::Value;
use skiff_api::inert;
use skiff_api::status::Status;

/// Attempts at a free generated name (upstream's maxNameGenerationCreateAttempts).
const ATTEMPTS: usize = 8;

/// Five random characters, as generated names end with.
pub fn suffix() -> String {
    skiff_api::meta::generate_name("", rand::random())
}

/// POST.
///
/// # Errors
/// Every refusal of the request.
pub async fn create(call: &Call, body: &[u8]) -> Answer {
    let (mut object, mut warnings) = input::object(call, body)?;
    meta::match_namespace(&call.row, &mut object, &call.namespace)?;
    meta::drop_managed_fields(&mut object);
    let written = create_object(&call.target(), object, &mut warnings).await?;
    written.answer(call, 201, &warnings)
}

/// An update or apply that creates is a create, whatever the request's verb: its user must be allowed that, too.
///
/// # Errors
/// 403.
pub async fn may_create(call: &Call) -> Result<(), Status> {
    // The namespaces resource has its name in the namespace's place, for authorization.
    let namespace = if call.row.storage == "core/namespaces" {
        call.name.clone()
    } else {
        call.namespace.clone()
    };
    let info = RequestInfo {
        is_resource: true,
        verb: "create",
        group: call.row.group.to_string(),
        version: call.row.version.to_string(),
        namespace,
        resource: call.row.plural.to_string(),
        name: call.name.clone(),
        ..RequestInfo::default()
    };
    call.app.auth.authorize(&call.app, &call.user, &info).await
}

/// Creates an object that is decoded, defaulted and in its namespace.
///
/// # Errors
/// 400, 403 (admission), 409 (exists), 422.
pub async fn create_object(
    target: &Target<'_>,
    object: Value,
    warnings: &mut Vec<String>,
) -> Result<Written, Status> {
    let row = target.row;
    let name = meta::text(&object, "name").to_string();
    let generated = name.is_empty() && !meta::text(&object, "generateName").is_empty();
    let mut write = Write {
        operation: Operation::Create,
        row,
        subresource: "",
        namespace: target.namespace,
        name: &name,
        object,
        old: None,
        user: target.user,
        dry_run: target.dry_run,
    };
    admission::mutate(target.app, &mut write, warnings).await?;
    let context = target.context();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let last = !generated || attempt == ATTEMPTS;
        let mut object = if last {
            std::mem::take(&mut write.object)
        } else {
            write.object.clone()
        };
        meta::before_create(
            row,
            &mut object,
            &now(),
            &uuid::Uuid::new_v4().to_string(),
            rand::random(),
        )?;
        if generated {
            // Defaults that are made of the name.
            (row.strategy.default)(&mut object);
        }
        (row.strategy.prepare_create)(&context, &mut object);
        let mut inner = Write {
            operation: Operation::Create,
            row,
            subresource: "",
            namespace: target.namespace,
            name: "",
            object,
            old: None,
            user: target.user,
            dry_run: target.dry_run,
        };
        let _reservation = special::reserve(target.app, &mut inner).await?;
        let errors = input::validate(row, &inner.object, None);
        let name = meta::text(&inner.object, "name").to_string();
        if !errors.is_empty() {
            return Err(Status::invalid(&row.group, &row.kind, &name, &errors));
        }
        inner.name = &name;
        admission::validate(target.app, &inner, warnings).await?;
        warnings.extend((row.strategy.warnings)(&inner.object));
        warnings.extend(inert::warnings(row, &inner.object));
        let mut object = std::mem::take(&mut inner.object);
        let shown = target.dry_run.then(|| object.clone());
        encode::to_stored(target.app, row, &mut object)?;
        let bytes = encode::bounded(row, &object, 0)?;
        if let Some(object) = shown {
            if target
                .app
                .store
                .get(&row.key(target.namespace, &name))
                .is_some()
            {
                return Err(Status::already_exists(&row.group, &row.plural, &name));
            }
            return Ok(Written::Dry(object));
        }
        match target
            .app
            .store
            .write(
                row.key(target.namespace, &name),
                Expect::Absent,
                Some(bytes),
            )
            .await
        {
            Ok(entry) => return Ok(Written::Stored(entry)),
            Err(e) if e.is_conflict() => {
                if last {
                    let mut status = Status::already_exists(&row.group, &row.plural, &name);
                    if generated {
                        status.message.push_str(
                            ", the server was not able to generate a unique name for the object",
                        );
                    }
                    return Err(status);
                }
            }
            Err(e) => return Err(e.status()),
        }
    }
}
