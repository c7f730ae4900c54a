//! Owns device rules: what a container may open, as v1 lines or as a v2 eBPF program. The program's text is pure data.
#![allow(unsafe_code)] // bpf(2) has no safe wrapper; two calls at the end of the file.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Allows one device, or a class of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// 'c', 'b', or 'a' for everything.
    pub kind: char,
    /// None is any.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Some of r, w, m.
    pub access: String,
}

fn rule(kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> Rule {
    Rule {
        kind,
        major,
        minor,
        access: access.into(),
    }
}

/// What every container may do (the list of runc): make any node, but open only the harmless ones.
pub fn default_rules() -> Vec<Rule> {
    let mut out = vec![rule('c', None, None, "m"), rule('b', None, None, "m")];
    // null, zero, full, random, urandom, tty, console, ptmx and every pty slave.
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ] {
        out.push(rule('c', Some(major), Some(minor), "rwm"));
    }
    out.push(rule('c', Some(136), None, "rwm"));
    out
}

/// Everything (privileged).
pub fn all_rules() -> Vec<Rule> {
    vec![rule('a', None, None, "rwm")]
}

/// v1: (file, line), the denial of everything first.
pub fn writes_v1(rules: &[Rule]) -> Vec<(&'static str, String)> {
    if rules.iter().any(|r| r.kind == 'a') {
        return vec![("devices.allow", "a".into())];
    }
    let n = |x: Option<u32>| x.map_or_else(|| "*".to_string(), |n| n.to_string());
    let mut out = vec![("devices.deny", "a".to_string())];
    out.extend(rules.iter().map(|r| {
        (
            "devices.allow",
            format!("{} {}:{} {}", r.kind, n(r.major), n(r.minor), r.access),
        )
    }));
    out
}

/// One eBPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    pub code: u8,
    /// Destination (low four bits) and source register.
    pub regs: u8,
    pub off: i16,
    pub imm: i32,
}

const LDX_W: u8 = 0x61;
const ALU_AND: u8 = 0x54;
const ALU_RSH: u8 = 0x74;
const MOV_REG: u8 = 0xbc;
const MOV_IMM: u8 = 0xb4;
const JNE_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program: loads type, access, major and minor of the attempt, then tests one rule after the other; 1 allows.
pub fn program(rules: &[Rule]) -> Vec<Insn> {
    let i = |code, dst: u8, src: u8, off, imm| Insn {
        code,
        regs: dst | src << 4,
        off,
        imm,
    };
    let mut out = vec![
        i(LDX_W, 2, 1, 0, 0),
        i(ALU_AND, 2, 0, 0, 0xffff),
        i(LDX_W, 3, 1, 0, 0),
        i(ALU_RSH, 3, 0, 0, 16),
        i(LDX_W, 4, 1, 4, 0),
        i(LDX_W, 5, 1, 8, 0),
    ];
    for r in rules {
        let mut body = Vec::new();
        match r.kind {
            'b' => body.push(i(JNE_IMM, 2, 0, 0, 1)),
            'c' => body.push(i(JNE_IMM, 2, 0, 0, 2)),
            _ => {}
        }
        let access: i32 = r
            .access
            .chars()
            .map(|c| match c {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => 0,
            })
            .sum();
        if access != 7 {
            // Any wanted bit outside of the allowed ones: not this rule.
            body.push(i(MOV_REG, 1, 3, 0, 0));
            body.push(i(ALU_AND, 1, 0, 0, !access & 7));
            body.push(i(JNE_IMM, 1, 0, 0, 0));
        }
        if let Some(major) = r.major {
            body.push(i(JNE_IMM, 4, 0, 0, major as i32));
        }
        if let Some(minor) = r.minor {
            body.push(i(JNE_IMM, 5, 0, 0, minor as i32));
        }
        body.push(i(MOV_IMM, 0, 0, 0, 1));
        body.push(i(EXIT, 0, 0, 0, 0));
        let len = body.len();
        for (at, insn) in body.iter_mut().enumerate() {
            if insn.code == JNE_IMM {
                insn.off = (len - at - 1) as i16;
            }
        }
        out.extend(body);
    }
    out.push(i(MOV_IMM, 0, 0, 0, 0));
    out.push(i(EXIT, 0, 0, 0, 0));
    out
}

fn cvt(r: libc::c_long) -> io::Result<libc::c_long> {
    match r {
        -1 => Err(io::Error::last_os_error()),
        r => Ok(r),
    }
}

/// Hands the program to the kernel, which checks it.
fn load(rules: &[Rule]) -> io::Result<OwnedFd> {
    let code: Vec<u8> = program(rules)
        .iter()
        .flat_map(|i| {
            let mut b = [0u8; 8];
            b[0] = i.code;
            b[1] = i.regs;
            b[2..4].copy_from_slice(&i.off.to_ne_bytes());
            b[4..].copy_from_slice(&i.imm.to_ne_bytes());
            b
        })
        .collect();
    const PROG_LOAD: i64 = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;

    let mut attr = [0u8; 128];
    attr[0..4].copy_from_slice(&TYPE_CGROUP_DEVICE.to_ne_bytes());
    attr[4..8].copy_from_slice(&((code.len() / 8) as u32).to_ne_bytes());
    attr[8..16].copy_from_slice(&(code.as_ptr() as u64).to_ne_bytes());
    attr[16..24].copy_from_slice(&(c"Apache-2.0".as_ptr() as u64).to_ne_bytes());
    // SAFETY: attr is a zero-padded union bpf_attr whose pointers stay valid during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, attr.as_ptr(), attr.len()) };
    let fd =
        cvt(fd).map_err(|e| io::Error::new(e.kind(), format!("load the device filter: {e}")))?;
    // SAFETY: the kernel just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether the kernel takes device filters at all; nothing is attached.
pub(crate) fn try_filter() -> io::Result<()> {
    load(&default_rules()).map(drop)
}

/// Loads the program and attaches it to the cgroup; it stays as long as the cgroup does.
pub fn attach_v2(cgroup: &Path, rules: &[Rule]) -> io::Result<()> {
    if rules.iter().any(|r| r.kind == 'a') {
        return Ok(());
    }
    const PROG_ATTACH: i64 = 8;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let program = load(rules)?;
    let dir = std::fs::File::open(cgroup)?;

    let mut attr = [0u8; 128];
    attr[0..4].copy_from_slice(&dir.as_raw_fd().to_ne_bytes());
    attr[4..8].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attr[8..12].copy_from_slice(&ATTACH_CGROUP_DEVICE.to_ne_bytes());
    attr[12..16].copy_from_slice(&ALLOW_MULTI.to_ne_bytes());
    // SAFETY: as above; no pointers in this variant.
    let r = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), attr.len()) };
    cvt(r).map(drop).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("attach the device filter to {}: {e}", cgroup.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would; enough instructions for ours.
    fn run(prog: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let ctx = [access << 16 | kind, major, minor];
        let mut r = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = prog[at];
            let (d, s) = ((i.regs & 15) as usize, (i.regs >> 4) as usize);
            at += 1;
            match i.code {
                LDX_W => r[d] = u64::from(ctx[i.off as usize / 4]),
                ALU_AND => r[d] = u64::from(r[d] as u32 & i.imm as u32),
                ALU_RSH => r[d] = u64::from(r[d] as u32 >> i.imm),
                MOV_REG => r[d] = u64::from(r[s] as u32),
                MOV_IMM => r[d] = u64::from(i.imm as u32),
                JNE_IMM => {
                    if r[d] != i.imm as i64 as u64 {
                        at = (at as i64 + i64::from(i.off)) as usize;
                    }
                }
                EXIT => return r[0],
                c => panic!("unknown instruction {c:#x}"),
            }
        }
    }

    #[test]
    fn the_v2_program_decides_as_the_rules_say() {
        let p = program(&default_rules());
        let (block, character, mknod, read, write) = (1, 2, 1, 2, 4);
        assert_eq!(run(&p, character, read | write, 1, 3), 1, "null");
        assert_eq!(run(&p, character, read, 136, 7), 1, "a pty");
        assert_eq!(run(&p, block, mknod, 8, 0), 1, "mknod of a disk");
        assert_eq!(run(&p, block, read, 8, 0), 0, "reading a disk");
        assert_eq!(
            run(&p, block, mknod | read, 8, 0),
            0,
            "making and reading a disk"
        );
        assert_eq!(run(&p, character, write, 1, 1), 0, "/dev/mem");
        assert_eq!(run(&program(&all_rules()), block, read | write, 8, 0), 1);
    }

    #[test]
    fn v1_lines_deny_everything_first() {
        let w = writes_v1(&[
            rule('c', Some(1), Some(3), "rwm"),
            rule('b', Some(8), None, "r"),
        ]);
        let text: Vec<String> = w.iter().map(|(f, v)| format!("{f} {v}")).collect();
        assert_eq!(
            text,
            [
                "devices.deny a",
                "devices.allow c 1:3 rwm",
                "devices.allow b 8:* r"
            ]
        );
    }
}
