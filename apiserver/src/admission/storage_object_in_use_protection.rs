//! StorageObjectInUseProtection: claims and volumes get the finalizer that keeps them while they are used. Pure. The
//! controllers that take the finalizer away again are pvc-protection and pv-protection; while they are not part of Skiff,
//! a finalizer that nobody removes would keep every deleted claim for ever, so [`ENABLED`] is off.

use crate::{Operation, Write};
use serde_json::{Value, json};

/// To be turned on together with the two controllers.
pub const ENABLED: bool = false;

/// Adds the finalizer on create.
pub fn admit(write: &mut Write<'_>) {
    if !ENABLED
        || write.operation != Operation::Create
        || !write.subresource.is_empty()
        || !write.row.group.is_empty()
    {
        return;
    }
    let finalizer = match &*write.row.plural {
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        "persistentvolumes" => "kubernetes.io/pv-protection",
        _ => return,
    };
    let Some(metadata) = write
        .object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(finalizer.into());
    }
}
