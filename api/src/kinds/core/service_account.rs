//! Service accounts (printServiceAccount). Tokens are made by the API server.

use crate::kinds::util::*;
use crate::resource::{Column, Strategy};

/// The strategy.
pub fn strategy() -> Strategy {
    Strategy {
        prepare_create: |_, _| {},
        prepare_update: |_, _, _| {},
        ..Strategy::default()
    }
}

/// The columns of `kubectl get serviceaccounts`.
pub fn columns() -> Vec<Column> {
    vec![
        col_name(),
        col("Secrets", 0, |s, _| items(s, "secrets").len().into()),
        col_age(),
    ]
}
