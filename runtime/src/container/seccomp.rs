//! Owns seccomp filters: from a profile (the default table or an OCI JSON file) to the bytes of a BPF program. Filters
//! are compiled in the server and cached as files; a container's process only loads the bytes.

use super::caps;
use super::seccomp_default as table;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use serde::Deserialize;
use std::io::{Read, Seek};

/// A seccomp profile in the format of the OCI runtime specification, which Kubernetes' localhost profiles use.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub default_action: String,
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    #[serde(default)]
    pub architectures: Vec<String>,
    #[serde(default)]
    pub syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub names: Vec<String>,
    pub action: String,
    #[serde(default)]
    pub errno_ret: Option<u32>,
    #[serde(default)]
    pub args: Vec<Arg>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arg {
    pub index: u32,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(errno as i32),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(errno as u16),
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        other => return Err(format!("the seccomp action {other:?} is not supported")),
    })
}

fn compare(a: &Arg) -> Result<ScmpArgCompare, String> {
    let (op, datum) = match a.op.as_str() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, a.value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, a.value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, a.value),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, a.value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, a.value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, a.value),
        // In the OCI format value is the mask and valueTwo the wanted result.
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(a.value), a.value_two),
        other => return Err(format!("the seccomp operator {other:?} is not known")),
    };
    if a.index > 5 {
        return Err(format!("a system call has no argument {}", a.index));
    }
    Ok(ScmpArgCompare::new(a.index, op, datum))
}

fn text(e: libseccomp::error::SeccompError) -> String {
    format!("build the seccomp filter: {e}")
}

fn architecture(name: &str) -> Option<ScmpArch> {
    Some(match name {
        "SCMP_ARCH_X86" => ScmpArch::X86,
        "SCMP_ARCH_X86_64" => ScmpArch::X8664,
        "SCMP_ARCH_X32" => ScmpArch::X32,
        "SCMP_ARCH_ARM" => ScmpArch::Arm,
        "SCMP_ARCH_AARCH64" => ScmpArch::Aarch64,
        _ => return None,
    })
}

/// The default profile for a process with these bounding capabilities.
pub fn default_profile(bounding: u64) -> Profile {
    let names = |s: &str| s.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let allow = |names: Vec<String>, args: Vec<Arg>| Rule {
        names,
        action: "SCMP_ACT_ALLOW".into(),
        errno_ret: None,
        args,
    };
    let arg = |index, value, value_two, op: &str| {
        vec![Arg {
            index,
            value,
            value_two,
            op: op.into(),
        }]
    };
    let mut syscalls = vec![
        allow(names(table::ALLOWED), vec![]),
        allow(names(table::ALLOWED_ARCH), vec![]),
    ];
    for p in table::PERSONALITIES {
        syscalls.push(allow(names("personality"), arg(0, p, 0, "SCMP_CMP_EQ")));
    }
    // vsock reaches the hypervisor, past the pod's network.
    syscalls.push(allow(
        names("socket"),
        arg(0, libc::AF_VSOCK as u64, 0, "SCMP_CMP_NE"),
    ));
    for (cap, calls) in table::ALLOWED_WITH {
        if caps::has(bounding, cap) {
            syscalls.push(allow(names(calls), vec![]));
        }
    }
    if !caps::has(bounding, "SYS_ADMIN") {
        // No new namespaces; clone3 hides its flags behind a pointer, and ENOSYS sends libc to clone.
        let namespaces = (libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP) as u32;
        syscalls.push(allow(
            names("clone"),
            arg(0, u64::from(namespaces), 0, "SCMP_CMP_MASKED_EQ"),
        ));
        syscalls.push(Rule {
            names: names("clone3"),
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(libc::ENOSYS as u32),
            args: vec![],
        });
    }
    let architectures: &[&str] = if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    Profile {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: None,
        architectures: architectures.iter().map(|s| (*s).to_string()).collect(),
        syscalls,
    }
}

/// Compiles a profile. `young` lists calls (by number) that libseccomp does not know yet and that are allowed.
pub fn compile(profile: &Profile, young: &[u32]) -> Result<Vec<u8>, String> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut ctx = ScmpFilterContext::new(default).map_err(text)?;
    // A search tree instead of a list: a tenth of the instructions for each call.
    let _ = ctx.set_ctl_optimize(2);
    for a in &profile.architectures {
        if let Some(arch) = architecture(a) {
            ctx.add_arch(arch).map_err(text)?;
        }
    }
    for rule in &profile.syscalls {
        let act = action(&rule.action, rule.errno_ret)?;
        if act == default {
            continue;
        }
        let args = rule
            .args
            .iter()
            .map(compare)
            .collect::<Result<Vec<_>, _>>()?;
        for name in &rule.names {
            // Names of other architectures or kernels are skipped, as runc does.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let indices: std::collections::BTreeSet<u32> =
                rule.args.iter().map(|a| a.index).collect();
            if args.is_empty() {
                ctx.add_rule(act, call).map_err(text)?;
            } else if indices.len() == args.len() {
                ctx.add_rule_conditional(act, call, &args).map_err(text)?;
            } else {
                // libseccomp takes one condition for each argument; several on one are alternatives (runc's rule).
                for one in &args {
                    ctx.add_rule_conditional(act, call, &[*one]).map_err(text)?;
                }
            }
        }
    }
    let memfd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| format!("make a memory file: {e}"))?;
    let mut file = std::fs::File::from(memfd);
    ctx.export_bpf(&file).map_err(text)?;
    let mut program = match default {
        ScmpAction::Allow | ScmpAction::Log => Vec::new(),
        _ => prefix(young),
    };
    file.rewind()
        .and_then(|()| file.read_to_end(&mut program))
        .map_err(|e| format!("read the seccomp filter: {e}"))?;
    Ok(program)
}

/// Instructions before libseccomp's: on the native architecture allow the young calls and answer ENOSYS for numbers
/// that nobody knew. Everything else falls through.
fn prefix(young: &[u32]) -> Vec<u8> {
    const LD_ABS: u16 = 0x20;
    const JEQ: u16 = 0x15;
    const JGT: u16 = 0x25;
    const JGE: u16 = 0x35;
    const RET: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const ARCH: u32 = if cfg!(target_arch = "x86_64") {
        0xc000_003e
    } else {
        0xc000_00b7
    };
    let n = young.len() as u8;
    // Layout: 0 load arch, 1 test, 2 load nr, 3 x32?, 4.. young, then >last, ret ENOSYS, ret ALLOW.
    let mut out: Vec<(u16, u8, u8, u32)> = vec![
        (LD_ABS, 0, 0, 4),
        (JEQ, 0, n + 5, ARCH),
        (LD_ABS, 0, 0, 0),
        (JGE, n + 3, 0, 0x4000_0000),
    ];
    for (i, call) in young.iter().enumerate() {
        out.push((JEQ, n - i as u8 + 1, 0, *call));
    }
    out.push((JGT, 0, 2, table::LAST_KNOWN));
    out.push((RET, 0, 0, ERRNO | libc::ENOSYS as u32));
    out.push((RET, 0, 0, ALLOW));
    out.iter()
        .flat_map(|(code, jt, jf, k)| {
            let mut b = [0u8; 8];
            b[..2].copy_from_slice(&code.to_ne_bytes());
            b[2] = *jt;
            b[3] = *jf;
            b[4..].copy_from_slice(&k.to_ne_bytes());
            b
        })
        .collect()
}

/// The program of the default profile.
pub fn compile_default(bounding: u64) -> Result<Vec<u8>, String> {
    compile(&default_profile(bounding), &table::ALLOWED_YOUNG)
}

/// The program of an OCI JSON profile.
pub fn compile_json(json: &[u8]) -> Result<Vec<u8>, String> {
    let profile: Profile = serde_json::from_slice(json)
        .map_err(|e| format!("the seccomp profile is not valid: {e}"))?;
    compile(&profile, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCH: u32 = 0xc000_003e;

    /// Runs a classic BPF program over (nr, arch, args[0]) as the kernel would.
    fn run(program: &[u8], nr: u32, arg0: u64) -> u32 {
        let insns: Vec<(u16, u8, u8, u32)> = program
            .chunks_exact(8)
            .map(|c| {
                (
                    u16::from_ne_bytes([c[0], c[1]]),
                    c[2],
                    c[3],
                    u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
                )
            })
            .collect();
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&nr.to_ne_bytes());
        data[4..8].copy_from_slice(&ARCH.to_ne_bytes());
        data[16..24].copy_from_slice(&arg0.to_ne_bytes());
        let (mut acc, mut at) = (0u32, 0usize);
        loop {
            let (code, jt, jf, k) = insns[at];
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { jt } else { jf });
            match code {
                0x20 => {
                    acc = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap())
                }
                0x15 => branch(acc == k),
                0x25 => branch(acc > k),
                0x35 => branch(acc >= k),
                0x54 => acc &= k,
                0x05 => at += k as usize,
                0x06 => return k,
                c => panic!("unknown instruction {c:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    fn errno(e: i32) -> u32 {
        0x0005_0000 | e as u32
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_default_profile_allows_and_refuses_as_containerd_s() {
        let caps = caps::sets(&[], &[], &[], false).unwrap().bounding;
        let p = compile_default(caps).unwrap();
        let cases = [
            ("read", 0, 0, ALLOW),
            ("execve", 59, 0, ALLOW),
            ("mount", 165, 0, errno(1)),
            ("unshare", 272, 0, errno(1)),
            ("clone of a thread", 56, 0x3d0f00, ALLOW),
            (
                "clone with a user namespace",
                56,
                libc::CLONE_NEWUSER as u64,
                errno(1),
            ),
            ("clone3", 435, 0, errno(libc::ENOSYS)),
            ("socket inet", 41, 2, ALLOW),
            ("socket vsock", 41, 40, errno(1)),
            ("personality query", 135, 0xffff_ffff, ALLOW),
            ("personality READ_IMPLIES_EXEC", 135, 0x400000, errno(1)),
            ("chroot with its capability", 161, 0, ALLOW),
            ("keyctl", 250, 0, errno(1)),
            ("io_uring_setup", 425, 0, errno(1)),
            ("fchmodat2", 452, 0, ALLOW),
            ("mseal", 462, 0, ALLOW),
            ("a call of the future", 600, 0, errno(libc::ENOSYS)),
        ];
        for (what, nr, arg, want) in cases {
            assert_eq!(run(&p, nr, arg), want, "{what}");
        }
        assert_eq!(
            run(&compile_default(caps::ALL).unwrap(), 165, 0),
            ALLOW,
            "mount with CAP_SYS_ADMIN"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn json_profiles_are_read_in_the_oci_format() {
        let p = compile_json(
            br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
                {"names":["chmod","nonsense"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
                {"names":["socket"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"},{"index":0,"value":10,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(run(&p, 90, 0), errno(13));
        assert_eq!(run(&p, 0, 0), ALLOW);
        assert_eq!(
            (run(&p, 41, 2), run(&p, 41, 10), run(&p, 41, 1)),
            (0x8000_0000, 0x8000_0000, ALLOW)
        );
        assert!(
            compile_json(br#"{"defaultAction":"SCMP_ACT_DANCE"}"#)
                .unwrap_err()
                .contains("DANCE")
        );
        assert!(compile_json(b"{").unwrap_err().contains("not valid"));
    }
}
