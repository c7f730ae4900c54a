//! Container logs in the CRI's format, `<time> <stream> <P|F> <text>`: reading them for users, rotating them. The
//! runtime writes them; nothing here does.

pub mod read;
pub mod rotate;
