//! `get`: one object (or its status subresource, which upstream answers with the whole object, too). Copies bytes.

use super::Call;
use crate::http::Answer;

/// GET of one object.
///
/// # Errors
/// 404; 504 when a resourceVersion of the future is asked for.
pub fn get(call: &Call) -> Answer {
    if let Some(rv) = call
        .options
        .resource_version
        .as_deref()
        .filter(|v| *v != "0")
    {
        super::list::at_least(&call.app, rv)?;
    }
    let entry = call
        .app
        .store
        .get(&call.key())
        .ok_or_else(|| call.not_found())?;
    call.object(200, &entry)
}
