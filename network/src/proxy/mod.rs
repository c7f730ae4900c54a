//! Service proxy
