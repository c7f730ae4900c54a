//! Later
