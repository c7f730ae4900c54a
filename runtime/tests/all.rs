//! The crate's integration tests: real sandboxes and containers on this machine. They need root; without it they say so
//! and pass. The binary is its own shim: an initialiser that runs before main takes `shim DIR`.

#![allow(unsafe_code)] // The initialiser below is called by libc before main.
mod all {
    pub mod births;
    pub mod build;
    pub mod chaos;
    pub mod confine;
    pub mod cri;
    pub mod harness;
    pub mod shims;
    pub mod signals;
    pub mod streams;
}

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// glibc hands an initialiser the arguments of main.
extern "C" fn early(argc: c_int, argv: *const *const c_char, _env: *const *const c_char) {
    // SAFETY: argv holds argc NUL-terminated strings.
    let args: Vec<OsString> = (0..argc as usize)
        .map(|i| unsafe {
            OsString::from(std::ffi::OsStr::from_bytes(
                CStr::from_ptr(*argv.add(i)).to_bytes(),
            ))
        })
        .collect();
    if args.get(1).is_some_and(|a| a == "shim") {
        skiff_runtime::shim_main(&args[2..]);
    }
    if args.get(1).is_some_and(|a| a == "serve") {
        all::chaos::serve_main(&args[2..]);
    }
    if args.get(1).is_some_and(|a| a == "imagebuild") {
        all::build::imagebuild_main(&args[2..]);
    }
    if args.get(1).is_some_and(|a| a == "knock") {
        all::shims::knock_main(&args[2..]);
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static EARLY: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = early;
